"""Programs of the distribution that tests run; deploy/setup.sh --dev sees to it that they are there."""

from __future__ import annotations

import shutil
import subprocess

from mysqlraft.sandbox.installation import cache_directory


def run_tool(program: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs an installed program, or the one in the cache, and returns how it ended.

    Raises FileNotFoundError, never skips, if it is in neither place.
    """
    path = shutil.which(program) or shutil.which(program, path=str(cache_directory() / "tools" / "bin"))
    if path is None:
        raise FileNotFoundError(f"{program} is not there: run tests/run.sh, or deploy/setup.sh --dev, which provide it")
    return subprocess.run([path, *arguments], env=environment, text=True, capture_output=True, timeout=100, check=False)
