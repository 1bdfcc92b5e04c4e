"""Locust as users run it, in its own processes, because its import replaces the sockets and locks of a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from pods import answered_by
from script_servers import NAMES, GrpcServer, Script, elements, image_id
from triton_process import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from triton_process import TritonProcess

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = str(ROOT / "load_tests" / "locustfile.py")
LENIENT = 'error_share = 0.0\nwrong_replies = 0\n[p99]\n"*" = 60.0\n'


class Locust:
    """Runs of Locust whose files are in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objectives = folder / "objectives.toml"
        self.objectives.write_text(LENIENT)
        self.html, self.json = folder / "report.html", folder / "summary.json"

    def command(self, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE),
            *("--headless", "--only-summary", "--variants", "resnet50", "--kinds", "thumbnail=2,web=1"),
            *("--objectives", str(self.objectives), *options),
        ]

    def run(self, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = self.command("--html", str(self.html), "--summary", str(self.json), *options)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=timeout)

    def begun(self, command: list[str]) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[str], IO[str]]]:
        """Yield a run whose users all send, and its log from there on."""
        # The second text is that of a master that did not hear of all users in time.
        return self.starts(command, until="All users spawned|Spawning is complete")

    @contextlib.contextmanager
    def starts(self, command: list[str], *, until: str) -> Generator[tuple[subprocess.Popen[str], IO[str]]]:
        """Yield a run whose log has reached a line that matches a regular expression, and its log from there on."""
        with subprocess.Popen(
            command, cwd=self.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if re.search(until, line):
                    break
            try:
                yield process, process.stderr
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def summary(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())

    def check_interrupted(self, log: str, code: int) -> None:
        """Assert that a run that was interrupted while its users were sending has lost nothing."""
        assert "Traceback" not in log
        summary = self.summary()
        # A request that takes longer than the wait after the interrupt counts as a failure.
        assert code == (0 if summary["met"] else 1)
        assert summary["problems"] == []
        assert summary["failures"].keys() <= {"no reply by the end of the run"}
        assert 0 < summary["answered"] <= summary["total"]["requests"]
        if not summary["failures"]:
            assert summary["total"]["requests"] == summary["server"]["segment_resnet50"]["requests"]
        assert 0 < summary["seconds"] < 30


class Masks(GrpcServer):
    """Answers with masks of the correct size."""

    def __init__(self, script: Script) -> None:
        self._peers: list[str] = []
        self._one = threading.Lock()
        super().__init__(script)

    def class_of(self, peer: str) -> int:
        del peer
        return 0

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - Triton's name, untyped
        image = request.raw_input_contents[0][4:]
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
        with self._one:
            mask = np.full((shown.height, shown.width), self.class_of(context.peer()), np.uint8)
            self.script.fixed = [
                ("MASK", "UINT8", [1, *mask.shape], mask.tobytes()),
                ("CLASS_NAMES", "BYTES", [1, 2], elements(*NAMES)),
                image_id(image),
            ]
            return super().ModelInfer(request, context)


def wait_for_a_reply(server: TritonProcess, *, users: int) -> None:
    """Wait until a user of a closed loop has received a reply.

    A user asks again when it has its reply: of more answers than there are users, one has come.
    """
    before = answered_by(server)
    wait_until(lambda: answered_by(server) > before + users, what="a reply")
