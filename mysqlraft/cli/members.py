"""mysqlraft members"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mysqlraft.cli import admin
from mysqlraft.cli.errors import EXIT_NO
from mysqlraft.cli.status import table
from mysqlraft.keys import Address, Refused

if TYPE_CHECKING:
    from mysqlraft.raft.configuration import Configuration

HELP = "who is in the cluster; add, promote, demote, remove a site, change its address or priority"
DESCRIPTION = """\
Shows or changes the members of the cluster. Ask any member's daemon: it passes a change on to the leader, and returns
when the change has committed. One member changes at a time. docs/operations.md has each procedure step by step.

  mysqlraft members list --config tokyo.yaml
  mysqlraft members add 7 osaka 10.7.0.1:7450      a nonvoter: it gets the log, and does not vote
  mysqlraft members add 7 osaka 10.7.0.1:7450 --witness   the same, for a site without a database server
  mysqlraft members promote osaka                  a voter from now on; refused while it lags
  mysqlraft members promote osaka --force          even though it lags: commits may have to wait for it
  mysqlraft members demote osaka                   a nonvoter again
  mysqlraft members remove osaka                   also the leader, which hands over first
  mysqlraft members address osaka 10.7.0.2:7450    where the others reach it
  mysqlraft members priority osaka 10              who rather leads: the greatest, of those that can
  mysqlraft members promote osaka --index 4711     only if the configuration is still the one that `list` showed

exit status: 0 done; 1 refused, its outcome is not known, or the site asked is not a member; 2 a wrong command line;
3 no daemon or no leader answers
"""

_COLUMNS = ("id", "name", "address", "kind", "priority", "role", "state")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="change", metavar="CHANGE", required=True)
    for name, meaning in (
        ("list", "the members"),
        ("add", "make a site a member that does not vote"),
        ("promote", "make it a voter"),
        ("demote", "make it a nonvoter"),
        ("remove", "make it no member"),
        ("address", "change where the others reach it"),
        ("priority", "change who rather leads"),
    ):
        sub = verbs.add_parser(name, help=meaning, description=f"mysqlraft members {name}: {meaning}")
        admin.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print JSON")
        if name == "list":
            continue
        admin.add_timeout(sub)
        sub.add_argument("--index", type=int, default=0, help="refuse if the configuration is another one")
        if name == "add":
            sub.add_argument("id", type=int, help="its id: 1 to 15, never used by another site")
            sub.add_argument("name", help="its name")
            sub.add_argument("--witness", action="store_true", help="it has no database server")
            sub.add_argument("--priority", type=int, default=0, help="0 to 100 (0)")
        else:
            sub.add_argument("site", help="its name or id")
        if name in ("add", "address"):
            sub.add_argument("address", type=_address, metavar="HOST:PORT", help="where the others reach it")
        if name == "priority":
            sub.add_argument("priority", type=int, help="0 to 100")
        if name == "promote":
            sub.add_argument("--force", action="store_true", help="even though it lags")


_CHANGES = {"add": "add-nonvoter", "address": "readdress", "priority": "prioritize"}


def run(args: argparse.Namespace) -> int:
    daemon = admin.daemon(args)
    if args.change != "list":
        done = daemon.post("/members", _wish(args), args.timeout)
        if args.json:
            print(json.dumps(done, indent=2))
        else:
            print(f"done: {_done(args)}; the configuration is the one at index {done['configuration_index']}")
        return 0
    found = _members(daemon.get("/status"))
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0 if found["membership"] == "member" else EXIT_NO


def _wish(args: argparse.Namespace) -> dict[str, Any]:
    wish: dict[str, Any] = {"change": _CHANGES.get(args.change, args.change), "expected_index": args.index}
    if args.change == "add":
        return wish | {
            "site": args.id,
            "name": args.name,
            "address": args.address,
            "witness": args.witness,
            "priority": args.priority,
        }
    wish["site"] = int(args.site) if args.site.isdecimal() else args.site
    for key in ("address", "priority", "force"):
        if hasattr(args, key):
            wish[key] = getattr(args, key)
    return wish


def _done(args: argparse.Namespace) -> str:
    if args.change == "add":
        return f"{args.name} is a nonvoter; `mysqlraft members promote {args.name}` once it has caught up"
    return {
        "promote": "{site} is a voter",
        "demote": "{site} is a nonvoter",
        "remove": "{site} is no member any more",
        "address": "{site} is reached at {address}",
        "priority": "{site} has priority {priority}",
    }[args.change].format(**vars(args))


def plain(configuration: Configuration) -> list[dict[str, Any]]:
    """Members as `members list --json` shows them, but for what only a running cluster knows."""
    return [{"id": site, **server.shown()} for site, server in configuration.servers.items()]


def _members(status: dict[str, Any]) -> dict[str, Any]:
    """Of a status: the members, and where the configuration that has them is."""
    rows = {row["name"]: row for row in status["sites"]}
    raft = status["raft"]
    return {
        "cluster": status["cluster"],
        "site": status["site"],
        "membership": raft["membership"],
        "reason": raft["membership_reason"],
        "leader": status["leader"],
        "configuration_index": raft["configuration_index"],
        "committed": raft["configuration_committed"],
        "transfer": status["transfer"],
        "members": [
            {
                "id": int(site),
                **member,
                "role": rows.get(member["name"], {}).get("role"),
                "state": rows.get(member["name"], {}).get("state"),
            }
            for site, member in raft["members"].items()
        ],
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    if found["reason"]:
        yield f"{found['site']} is {found['reason']}; this is what it knew last:"
    pending = "" if found["committed"] else ", not committed yet"
    yield f"cluster {found['cluster']}: configuration at index {found['configuration_index']}{pending}"
    if found["transfer"]:
        yield f"leadership is being handed over to {found['transfer']}"
    yield ""
    rows = [
        tuple(str(member[key] if member[key] is not None else "-") for key in _COLUMNS) for member in found["members"]
    ]
    yield from table([_COLUMNS, *rows], numbers=(0, 4))


def _address(text: str) -> str:
    try:
        return str(Address.parse(text))
    except Refused as refused:
        raise argparse.ArgumentTypeError(f"{text!r} is not {refused}") from None
