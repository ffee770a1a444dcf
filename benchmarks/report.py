"""The form that all benchmarks report in: ours and a peer's, side by side, from one run.

With --json, one object on standard output: ``figures``: name -> ``ours``, ``peer``, ``ratio`` (ours / peer), ``unit``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mysqlraft.sandbox.servers import ENGINES, Installation, find_server, find_servers


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, and the peer's, if there is one. Which way is better shows in the unit."""

    ours: float
    peer: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every benchmark understands."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="the kind of server (auto)")


def chosen(args: argparse.Namespace) -> Installation:
    """The server to measure with; "auto": MySQL, or what there is."""
    if args.engine != "auto":
        return find_servers(args.engine)[args.engine]
    found = next((server for engine in ENGINES if (server := find_server(engine)) is not None), None)
    return found or find_servers()["mysql"]


def publish(args: argparse.Namespace, title: str, figures: Mapping[str, Figure]) -> None:
    """Prints the figures, as a table or as JSON."""
    if args.json:
        found = {
            name: {"ours": figure.ours, "peer": figure.peer, "ratio": figure.ratio, "unit": figure.unit}
            for name, figure in figures.items()
        }
        json.dump({"title": title, "figures": found}, sys.stdout)
        print()
        return
    print(title)
    width = max(map(len, figures), default=0)
    print(f"{'':{width}}  {'ours':>12}  {'peer':>12}  {'ratio':>7}")
    for name, figure in figures.items():
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        peer = "" if figure.peer is None else f"{figure.peer:,.6g}"
        print(f"{name:{width}}  {figure.ours:12,.6g}  {peer:>12}  {ratio:>7}  {figure.unit}")
