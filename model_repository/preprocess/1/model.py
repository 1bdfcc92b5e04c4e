"""Triton adapter of `image_ops`: IMAGE bytes in, PIXELS and SIZE out."""

from __future__ import annotations

import json
import traceback

import image_ops
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, one process, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings from the parameters of the model's config."""
        torch.set_num_threads(1)
        parameters = json.loads(args["model_config"])["parameters"]
        self._settings = image_ops.Settings.from_parameters(
            {name: value["string_value"] for name, value in parameters.items()}
        )

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request by itself: a bad image costs its batch-mates nothing."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            pixels, size = image_ops.preprocess(encoded.reshape(-1).tolist(), self._settings)
        except image_ops.InvalidImageError as exc:
            return _error(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001  our fault, whatever it is
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"preprocess failed: {exc!r}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels), pb_utils.Tensor("SIZE", size)])


def _error(message: str, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
