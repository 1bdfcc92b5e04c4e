"""Load test of the segmentation server; see README.md.

locust --locustfile load_tests/locustfile.py --host grpc://localhost:8001 --headless --users 8 --run-time 60s
"""

from __future__ import annotations

# Import Locust first, because its import replaces the sockets and locks of the standard library.
from locust import events  # isort: skip

import sys
from pathlib import Path

# Locust searches only this folder and the current one for modules.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from load_tests.options import add_arguments
from load_tests.preparation import begin
from load_tests.users import HostUser, SecondHostUser

__all__ = ["HostUser", "SecondHostUser"]

events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(begin)
