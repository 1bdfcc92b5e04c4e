"""The command line of a headless run."""

from __future__ import annotations

import sys
from pathlib import Path

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def command(*, users: int, seconds: int, objectives: Path, reports: Path) -> list[str]:
    """Return the command of a run, without --host, that writes `reports` with the suffixes .html and .json.

    Args:
        users: Number of users; all start at once.
        seconds: Duration of the run.
        objectives: TOML file.
        reports: Path of the reports without a suffix.
    """
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless"),
        *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"),
        *("--objectives", str(objectives)),
        *("--html", f"{reports}.html", "--summary", f"{reports}.json"),
        *("--only-summary", "--loglevel", "WARNING"),
    ]
