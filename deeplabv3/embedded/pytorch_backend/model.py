"""Python-based stand-in for NVIDIA's native pytorch backend, in a server that ships without libtorch."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import torchscript_model


class TritonPythonModel:
    """One instance of a model. It reads the file at the start, or at the first request if the config says so.

    Until then it does not import torch, which alone takes hundreds of megabytes.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, unless its parameter LOAD_AT_FIRST_REQUEST is "true"."""
        self._args = args
        self._model: torchscript_model.TorchScriptModel | None = None
        config = json.loads(args["model_config"])
        self._file = Path(args["model_repository"], args["model_version"]) / (
            config.get("default_model_filename") or "model.pt"
        )
        self._found = self._identity()
        if config.get("parameters", {}).get("LOAD_AT_FIRST_REQUEST", {}).get("string_value") != "true":
            self._load()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests of one batch."""
        if self._model is None:
            try:
                self._model = self._load()
            except Exception as exc:  # noqa: BLE001 - torch raises any type for a bad file; logged, and returned to the caller
                pb_utils.Logger.log_error(traceback.format_exc())
                error = pb_utils.TritonError(f"the model cannot be loaded: {exc}", pb_utils.TritonError.INTERNAL)
                return [pb_utils.InferenceResponse(error=error) for _ in requests]
        return self._model.execute(requests)

    def _load(self) -> torchscript_model.TorchScriptModel:
        if self._identity() != self._found:
            # The server has read the configs and the other models of the build before.
            raise RuntimeError("its file was replaced after the server started; restart the server")
        import torchscript_model  # noqa: PLC0415 - see above

        self._model = torchscript_model.TorchScriptModel(self._args)
        return self._model

    def _identity(self) -> tuple[int, ...] | None:
        """Return values that change when the file is replaced; None if it does not exist."""
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
