"""Triton adapter of `palette_png`: MASK in, MASK_PNG out."""

from __future__ import annotations

import traceback

import numpy as np
import palette_png
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, one process, one thread."""

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request separately."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        masks = pb_utils.get_input_tensor_by_name(request, "MASK").as_numpy()
        if masks.size == 0:
            return _error(
                f"MASK has shape {list(masks.shape)}; every side must be at least 1",
                pb_utils.TritonError.INVALID_ARG,
            )
        try:
            encoded = [[palette_png.encode(mask)] for mask in masks]
        except Exception as exc:  # noqa: BLE001 - any other error is the server's fault
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"encode_mask failed: {exc!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("MASK_PNG", np.array(encoded, np.object_))])


def _error(message: str, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
