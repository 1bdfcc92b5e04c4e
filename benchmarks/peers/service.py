"""What a peer's program is told, from the process that starts it."""

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
    """What a peer's program is told.

    Attributes:
        model: the TorchScript file of a core model.
        preprocess: the parameters in the config.pbtxt of the preprocess model.
        class_count: what the model tells apart.
        max_pixels: of a mask.
        port: on 127.0.0.1.
        workers: processes that compute.
        threads: of each worker.
        batch: images at most in one call of the model.
        batch_wait: seconds that a batch waits for more images.
        stages: whether pre- and postprocessing have processes of their own, where the server knows stages.
        queue: requests that may wait, where the server has such a limit.
        timeout: seconds that a request may take, where the server has such a limit.
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
        """Write it to a file; return the environment variable that names the file."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return {VARIABLE: str(file)}

    @classmethod
    def read(cls) -> Service:
        """Return what the environment names."""
        return cls(**json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8")))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]
