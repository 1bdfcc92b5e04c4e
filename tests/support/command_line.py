"""The command line `deeplab`, run in this process or in another one, with a fake instead of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deeplab_client import RetryPolicy, SegmentationClient, SegmentationError
from deeplab_client._cli import app, server

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray

    from deeplab_client.testing import FakeTransport, ReceivedRequest

URL = "grpc://fake:8001"
HEIGHT, WIDTH = 12, 20


def cats(request: ReceivedRequest) -> NDArray[np.uint8]:
    """Answer with cat where the picture is bright; fail if the bytes of the picture name an error."""
    names = {kind.__name__: kind for kind in SegmentationError.__subclasses__()}
    if (kind := names.get(request.image.decode("latin-1"))) is not None:
        raise kind("as the picture says")
    red = np.asarray(request.picture)[:, :, 0]
    return np.where(red > 127, np.uint8(8), np.uint8(0))


def reach(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """Connect the commands to a fake."""

    def connect(url: str, *, model: str, timeout: float) -> SegmentationClient:
        at_once = RetryPolicy(first_delay=0)
        return SegmentationClient(url, model=model, timeout=timeout, retries=at_once, transport=transport)

    monkeypatch.setattr(server, "connect", connect)
    for name in os.environ:
        if name.startswith("DEEPLAB_"):
            monkeypatch.delenv(name)
    return transport


def picture(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, WIDTH // 2 :] = 200
    Image.fromarray(pixels).save(path)
    return path


def broken(path: str, error: type[SegmentationError]) -> None:
    Path(path).write_text(error.__name__)


def files(folder: str | Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def touched(path: Path) -> None:
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def run(*arguments: str) -> int:
    return app.run([arguments[0], "--url", URL, *arguments[1:]])


def states(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, str]:
    """Segment into the folder `out`; return the result of each picture."""
    capsys.readouterr()
    assert run("segment", *arguments, "-o", "out", "--json") == code
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {one["path"]: one["state"] for one in told}


PROGRAM = textwrap.dedent("""
    import time
    from pathlib import Path
    from deeplab_client import SegmentationClient
    from deeplab_client.__main__ import main
    from deeplab_client._cli import server
    from deeplab_client.testing import FakeTransport
    import numpy as np

    def answer(request):
        while request.image == b"hold" and not Path("go").exists():
            time.sleep(0.02)
        return np.full((12, 20), 8, np.uint8)

    transport = FakeTransport(answer, weights="none")
    server.connect = lambda url, **options: SegmentationClient(url, transport=transport, **options)
    main()
""")


def start(
    *arguments: str, stdin: int | None = None, terminal: int | None = None, first: str = ""
) -> subprocess.Popen[bytes]:
    """Run the command line in its own process, after some code."""
    output = subprocess.PIPE if terminal is None else terminal
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", f"{first}\n{PROGRAM}", *arguments, "--url", URL]
    return subprocess.Popen(command, stdin=stdin, stdout=output, stderr=output, env=environment)
