"""Load test of the segmentation server; see README.md.

locust --locustfile load_tests/locustfile.py --host grpc://localhost:8001 --headless --users 8 --run-time 60s
"""

from __future__ import annotations

# Locust replaces the standard library's sockets and locks when it is imported: before anything that uses them.
from locust import events  # isort: skip

import sys
from pathlib import Path

# Locust looks beside this file and where it was started, which may be anywhere.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from load_tests.options import add_arguments
from load_tests.preparation import begin
from load_tests.users import HostUser, SecondHostUser

__all__ = ["HostUser", "SecondHostUser"]

events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(begin)
