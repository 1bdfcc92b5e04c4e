"""Triton adapter of `mask_ops`: LOGITS and SIZE in, masks and what is in them out."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import mask_ops
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance, one process, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the class names and the limit on pixels."""
        config = json.loads(args["model_config"])
        names = mask_ops.read_class_names(
            Path(args["model_repository"])
            / pb_utils.get_output_config_by_name(config, "CLASS_PIXELS")["label_filename"]
        )
        self._class_names = np.array(names, np.object_)
        self._max_pixels = int(config["parameters"]["max_pixels"]["string_value"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request by itself."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        logits = pb_utils.get_input_tensor_by_name(request, "LOGITS").as_numpy()
        sizes = pb_utils.get_input_tensor_by_name(request, "SIZE").as_numpy()
        try:
            results = mask_ops.postprocess(
                logits, sizes, class_count=len(self._class_names), max_pixels=self._max_pixels
            )
        except mask_ops.InvalidLogitsError as exc:
            return _error(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001  our fault, whatever it is
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"postprocess failed: {exc!r}", pb_utils.TritonError.INTERNAL)
        found = {
            "MASK": results.masks,
            "MASK_FOR_PNG": results.masks,
            "CLASS_PIXELS": results.class_pixels,
            "CLASS_NAMES": np.tile(self._class_names, (len(logits), 1)),
        }
        # What nobody asked for would be copied to the server all the same.
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, found[name]) for name in request.requested_output_names()]
        )


def _error(message: str, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
