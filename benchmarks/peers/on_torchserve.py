"""The pipeline on TorchServe: a handler with the usual three methods, packaged with the model.

Tried: two workers with one thread each, one with two, batches of 8; PEERS has the chosen setups. Requests
above `job_queue_size` are rejected (503).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# TorchServe is installed only by `make bench-peers`.

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.service import Service, free_port
from benchmarks.peers.steps import Pipeline


class Segmenter(BaseHandler):
    """One worker."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401 - TorchServe has no types
        """Load the packaged model."""
        folder = context.system_properties["model_dir"]
        file = context.manifest["model"]["serializedFile"]
        self._pipeline = Pipeline(Service.read(), model=f"{folder}/{file}")
        self.initialized = True

    def preprocess(self, data: Any) -> Any:  # noqa: ANN401 - likewise
        """Return pixels and size of each image."""
        return [self._pipeline.preprocess(bytes(row["body"])) for row in data]

    def inference(self, data: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - likewise
        """Return logits and size of each image."""
        return self._pipeline.predict(data)

    def postprocess(self, data: Any) -> list[bytes]:  # noqa: ANN401 - likewise
        """Return the masks."""
        return [self._pipeline.postprocess(*each) for each in data]


def main() -> None:
    """Package the handler, then become TorchServe."""
    service, folder, programs = Service.read(), Path.home(), Path(sys.executable).parent
    os.environ |= {"LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder)}
    model = {
        "minWorkers": service.workers,
        "maxWorkers": service.workers,
        "batchSize": service.batch,
        "maxBatchDelay": max(1, round(service.batch_wait * 1000)),
        "responseTimeout": round(service.timeout),
    }
    (folder / "model-config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in model.items()))
    settings = {
        "inference_address": f"http://127.0.0.1:{service.port}",
        "management_address": f"http://127.0.0.1:{free_port()}",
        "metrics_address": f"http://127.0.0.1:{free_port()}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": free_port(),
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": free_port(),
        "job_queue_size": service.queue,
        "default_response_timeout": round(service.timeout),
        "disable_token_authorization": "true",
    }
    (folder / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    (store := folder / "store").mkdir()
    packaged = ["--model-name", "segment", "--version", "1.0", "--serialized-file", service.model]
    packaged += ["--handler", __file__, "--config-file", str(folder / "model-config.yaml")]
    archiver = [str(programs / "torch-model-archiver"), *packaged, "--export-path", str(store)]
    subprocess.run([*archiver, "--archive-format", "no-archive"], check=True)  # noqa: S603 - TorchServe's own
    options = ["--start", "--foreground", "--ncs", "--ts-config", str(folder / "config.properties")]
    command = [str(programs / "torchserve"), *options, "--model-store", str(store), "--models", "segment=segment"]
    os.execv(command[0], command)  # noqa: S606 - TorchServe's own


if __name__ == "__main__":
    main()
