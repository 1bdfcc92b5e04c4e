"""Triton adapter of `confidence_ops`: LOGITS and SIZE in, CONFIDENCE out."""

from __future__ import annotations

import json
import traceback

import confidence_ops
import logit_tiles
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, one process, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the number of classes and the limit on pixels."""
        config = json.loads(args["model_config"])
        self._class_count = int(pb_utils.get_input_config_by_name(config, "LOGITS")["dims"][0])
        self._max_pixels = logit_tiles.max_pixels_in(
            {name: value["string_value"] for name, value in config["parameters"].items()}
        )

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request separately."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        logits, sizes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("LOGITS", "SIZE"))
        try:
            found = confidence_ops.confidence(logits, sizes, class_count=self._class_count, max_pixels=self._max_pixels)
        except logit_tiles.InvalidLogitsError as exc:
            return _error(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001 - any other error is the server's fault
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"confidence failed: {exc!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("CONFIDENCE", found)])


def _error(message: str, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
