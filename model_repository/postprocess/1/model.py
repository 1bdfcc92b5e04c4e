"""Triton adapter of `mask_ops`: LOGITS and SIZE in, masks and their classes out; IMAGE_ID unchanged."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

import logit_tiles
import mask_ops
import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    import mask_ops_cuda
    import numpy.typing as npt


class TritonPythonModel:
    """One instance, one process, one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the class names and the limit on pixels."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._class_names = np.array(json.loads(parameters["class_names"]), np.object_)
        self._max_pixels = logit_tiles.max_pixels_in(parameters)
        self._masker = self._gpu_masker(args)

    def _gpu_masker(self, args: dict[str, str]) -> mask_ops_cuda.Masker | None:
        if args["model_instance_kind"] != "GPU":
            return None
        import mask_ops_cuda  # noqa: PLC0415 - an instance on a CPU saves the memory of torch
        import torch  # noqa: PLC0415 - as above

        device = torch.device("cuda", int(args["model_instance_device_id"]))
        torch.cuda.set_device(device)
        return mask_ops_cuda.Masker(device, class_count=len(self._class_names), max_pixels=self._max_pixels)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer every request separately; wait for a GPU once, after all requests are started."""
        results = [self._attempt(request) for request in requests]
        if self._masker is not None:
            try:
                self._masker.wait()
            except Exception as exc:  # noqa: BLE001 - CUDA reports the failure of any request here: logged, and INTERNAL for all
                failed = _failed(exc)
                results = [result if isinstance(result, pb_utils.TritonError) else failed for result in results]
        return [self._response(request, result) for request, result in zip(requests, results, strict=True)]

    def _attempt(
        self, request: pb_utils.InferenceRequest
    ) -> tuple[npt.NDArray[np.int64], mask_ops.Masks] | pb_utils.TritonError:
        try:
            # Before the masks, because Triton reuses this memory for another request if it gives this one up.
            return self._read(request, "IMAGE_ID"), self._masks(request)
        except logit_tiles.InvalidLogitsError as exc:
            return pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001 - the server's fault: logged, and INTERNAL for this request
            return _failed(exc)

    def _masks(self, request: pb_utils.InferenceRequest) -> mask_ops.Masks:
        logits = pb_utils.get_input_tensor_by_name(request, "LOGITS")
        sizes = self._read(request, "SIZE")
        if self._masker is None:
            return mask_ops.postprocess(
                logits.as_numpy(), sizes, class_count=len(self._class_names), max_pixels=self._max_pixels
            )
        import torch  # noqa: PLC0415 - see _gpu_masker

        return self._masker.start(torch.from_dlpack(logits.to_dlpack()), sizes)

    def _read(self, request: pb_utils.InferenceRequest, name: str) -> npt.NDArray[Any]:
        """Return a copy of a small input."""
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if self._masker is None:
            return tensor.as_numpy().copy()
        import torch  # noqa: PLC0415 - see _gpu_masker

        # On any device. Input tensors are complete when their request comes, so there is no stream to wait for.
        return torch.from_dlpack(tensor.to_dlpack()).cpu().numpy().copy()

    def _response(
        self,
        request: pb_utils.InferenceRequest,
        result: tuple[npt.NDArray[np.int64], mask_ops.Masks] | pb_utils.TritonError,
    ) -> pb_utils.InferenceResponse:
        if isinstance(result, pb_utils.TritonError):
            return pb_utils.InferenceResponse(error=result)
        image_id, found = result
        outputs = {
            "MASK": found.masks,
            "MASK_FOR_PNG": found.masks,
            "CLASS_PIXELS": found.class_pixels,
            "CLASS_NAMES": np.tile(self._class_names, (len(found.masks), 1)),
            "IMAGE_ID": image_id,
        }
        # Only the requested outputs, because others would be copied to the server too.
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
        )


def _failed(exc: Exception) -> pb_utils.TritonError:
    pb_utils.Logger.log_error(traceback.format_exc())
    return pb_utils.TritonError(f"postprocess failed: {exc!r}", pb_utils.TritonError.INTERNAL)
