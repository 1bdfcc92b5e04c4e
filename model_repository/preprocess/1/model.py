"""Triton adapter of `image_ops`: IMAGE bytes in; PIXELS, SIZE and IMAGE_ID out."""

from __future__ import annotations

import json
import traceback
import zlib
from typing import TYPE_CHECKING

import image_ops
import numpy as np
import torch
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import image_ops_cuda
    import numpy.typing as npt


class TritonPythonModel:
    """One instance, one process, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings from the parameters of the model's config."""
        torch.set_num_threads(1)
        parameters = json.loads(args["model_config"])["parameters"]
        self._settings = image_ops.Settings.from_parameters(
            {name: value["string_value"] for name, value in parameters.items()}
        )
        self._on_gpu = self._gpu_preprocessor(args)

    def _gpu_preprocessor(self, args: dict[str, str]) -> image_ops_cuda.Preprocessor | None:
        if args["model_instance_kind"] != "GPU":
            return None
        import image_ops_cuda  # noqa: PLC0415 - only needed on a GPU

        device = torch.device("cuda", int(args["model_instance_device_id"]))
        torch.cuda.set_device(device)
        return image_ops_cuda.Preprocessor(device, self._settings)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request separately, so that a bad image does not affect the other requests of the batch."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1).tolist()
        try:
            pixels, size = self._preprocess(encoded)
        except image_ops.InvalidImageError as exc:
            return _error(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001 - any other error is the server's fault
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"preprocess failed: {exc!r}", pb_utils.TritonError.INTERNAL)
        image_id = np.array([[zlib.crc32(data)] for data in encoded], np.int64)
        return pb_utils.InferenceResponse(
            [pixels, pb_utils.Tensor("SIZE", size), pb_utils.Tensor("IMAGE_ID", image_id)]
        )

    def _preprocess(self, encoded: list[bytes]) -> tuple[pb_utils.Tensor, npt.NDArray[np.int32]]:
        if self._on_gpu is None:
            pixels, size = image_ops.preprocess(encoded, self._settings)
            return pb_utils.Tensor("PIXELS", pixels), size
        tensor, size = self._on_gpu.preprocess(encoded)
        # The tensor itself instead of a capsule, because with a capsule Triton would not wait for the GPU.
        return pb_utils.Tensor.from_dlpack("PIXELS", tensor), size


def _error(message: str, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
