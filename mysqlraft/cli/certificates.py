"""mysqlraft certificates"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mysqlraft import certificates, config
from mysqlraft.cli.errors import CommandError

HELP = "make certificates for the links between the sites, and an authority that signs them"
DESCRIPTION = f"""\
For clusters without a PKI of their own. Makes in DIR an authority (ca.pem, ca.key) and for every site of the file
NAME.pem and NAME.key. What is there already stays: run it again after a site was added, or with --renew before
the certificates end, {certificates.SITE_DAYS} days after they were made.

  mysqlraft certificates --config tokyo.yaml --dir certificates
  mysqlraft certificates --config tokyo.yaml --dir certificates --renew

Each site's machine gets ca.pem and its own NAME.pem and NAME.key, which tls.ca, tls.certificate and tls.key name.
ca.key goes to none of them: with it, anybody can be any site. Keep it where backups of secrets are kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="any site's YAML file")
    parser.add_argument("--dir", metavar="DIR", type=Path, required=True, help="where to keep them; made if missing")
    parser.add_argument("--renew", action="store_true", help="make the sites' certificates and keys anew")
    parser.add_argument(
        "--days",
        type=_days,
        default=certificates.SITE_DAYS,
        metavar="N",
        help=f"how long the sites' are valid ({certificates.SITE_DAYS})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    cluster = config.load(args.config).cluster
    names = [site.name for site in cluster.sites]
    try:
        made = certificates.make(args.dir, cluster.id, names, days=args.days, renew=args.renew)
    except (OSError, ValueError) as error:
        raise CommandError(f"{args.dir}: {error}") from None
    if args.json:
        print(json.dumps({"dir": str(args.dir), "made": [str(path) for path in made]}, indent=2))
        return 0
    for path in made:
        print(path)
    if not made:
        print(f"{args.dir} holds certificates for all {len(names)} sites already (--renew makes them anew)")
    return 0


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= certificates.AUTHORITY_DAYS:
        raise argparse.ArgumentTypeError(f"1 to {certificates.AUTHORITY_DAYS} days, not {text!r}")
    return int(text)
