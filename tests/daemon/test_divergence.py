"""The divergence alarm in the daemon: what it does about a site that has gone astray."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.harness.daemons import free_port, running, settings

# The daemon, among two others that say the same, and another thing than it does.
ASTRAY = """
import sys
from mysqlraft.cli import main
from mysqlraft.daemon import Daemon
Daemon._checks = lambda self, told: [(2048, "one")]
Daemon._heard = lambda self, site: ({"state": "running", "reason": "", "checks": [(2048, "other")]}, 0.0)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.timeout(60)
def test_a_site_that_has_diverged_stops_replicating_and_stays_so(tmp_path: Path) -> None:
    sites = [
        {"id": n, "name": name, "address": f"127.0.0.1:{free_port()}"}
        for n, name in enumerate(("tokyo", "oslo", "lima"), 1)
    ]
    path = settings(tmp_path, cluster={"id": "test", "sites": sites})
    admin = yaml.safe_load(path.read_text())["admin"]["listen"]
    reason = "this site has diverged: at index 2048 its running checksum differs (sites [2, 3], a majority"

    def told() -> tuple[str, str]:
        with urllib.request.urlopen(f"http://{admin}/status", timeout=5) as answer:
            row = json.load(answer)["sites"][0]
        return row["state"], row["reason"]

    with running(path, program=(sys.executable, "-c", ASTRAY)) as daemon:
        assert daemon.stderr is not None
        assert any("replication stops: " + reason in line for line in daemon.stderr)
        while (found := told())[0] != "stopped":
            pass
        assert found[1].startswith(reason)
        assert "let the site rejoin with an empty data_dir" in found[1]
        daemon.send_signal(signal.SIGHUP)
        assert any("reloaded changed=nothing" in line for line in daemon.stderr)
        assert told()[0] == "stopped", "a reload does not make it right"
        daemon.terminate()
        assert daemon.wait(20) == 0
