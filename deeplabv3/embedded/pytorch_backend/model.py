"""Python-based stand-in for NVIDIA's native pytorch backend, for a server that ships without libtorch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torchscript_model
    import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of a model, whose file it reads at the start, or at the first request where its config says so.

    Until then it does without torch, which alone takes hundreds of megabytes.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, unless its parameter LOAD_AT_FIRST_REQUEST is "true"."""
        self._args = args
        self._model: torchscript_model.TorchScriptModel | None = None
        parameters = json.loads(args["model_config"]).get("parameters", {})
        if parameters.get("LOAD_AT_FIRST_REQUEST", {}).get("string_value") != "true":
            self._load()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests of one batch."""
        return (self._model or self._load()).execute(requests)

    def _load(self) -> torchscript_model.TorchScriptModel:
        import torchscript_model  # noqa: PLC0415 - see above

        self._model = torchscript_model.TorchScriptModel(self._args)
        return self._model
