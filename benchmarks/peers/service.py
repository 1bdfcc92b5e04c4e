"""The settings of a peer's program, passed by the process that starts it."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "PEER_SERVICE"
MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Service:
    """The settings of a peer's program.

    Attributes:
        model: the TorchScript file of a core model.
        preprocess: the parameters in the config.pbtxt of the preprocess model.
        class_count: number of classes of the model.
        max_pixels: limit for the pixels of a mask.
        port: on 127.0.0.1.
        workers: processes that compute.
        threads: of each worker.
        batch: maximum number of images in one call of the model.
        batch_wait: seconds that a batch waits for more images.
        stages: whether pre- and postprocessing have separate processes, in servers with stages.
        queue: limit of waiting requests, in servers that have one.
        timeout: limit of the seconds of a request, in servers that have one.
    """

    model: str
    preprocess: dict[str, str]
    class_count: int
    max_pixels: int
    port: int
    workers: int
    threads: int
    batch: int
    batch_wait: float
    stages: bool
    queue: int
    timeout: float

    def write(self, file: Path) -> dict[str, str]:
        """Write the settings to a file; return the environment variable with its path."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return {VARIABLE: str(file)}

    @classmethod
    def read(cls) -> Service:
        """Read the file that the environment variable names."""
        return cls(**json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8")))


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]
