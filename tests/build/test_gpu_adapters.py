"""The instances of preprocess and postprocess on a GPU, with the CPU in its place and a fake of Triton's module."""

from __future__ import annotations

import binascii
import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import image_ops_cuda
import logit_tiles
import mask_ops
import mask_ops_cuda
import numpy as np
import pictures
import pytest
import torch
from google.protobuf import json_format

from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable

    import image_ops

pytestmark = pytest.mark.build

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


class Tensor:
    """A tensor of Triton's, in CPU memory."""

    def __init__(self, name: str, array: Any) -> None:  # noqa: ANN401 - numpy's
        self.name = name
        self.array = array

    def as_numpy(self) -> Any:  # noqa: ANN401 - numpy's
        return self.array

    def to_dlpack(self) -> object:
        return torch.from_numpy(self.array).__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:  # noqa: ANN401 - torch's
        assert isinstance(tensor, torch.Tensor), "a capsule would not be waited for"
        assert tensor.is_contiguous()
        return Tensor(name, tensor.numpy())


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message: str, code: int = 1) -> None:
        self.message, self.code = message, code


@dataclass
class Response:
    output_tensors: list[Tensor] = field(default_factory=list[Tensor])
    error: TritonError | None = None

    def arrays(self) -> dict[str, Any]:
        assert self.error is None, self.error.message
        return {tensor.name: tensor.array for tensor in self.output_tensors}


class Logger:
    @staticmethod
    def log_error(message: str) -> None:
        """Forget what a failure that a test asks for logs."""


class Request:
    """Asks for all that postprocess has."""

    def __init__(self, **inputs: Any) -> None:  # noqa: ANN401 - numpy's
        self.inputs = {name: Tensor(name, array) for name, array in inputs.items()}

    def requested_output_names(self) -> list[str]:
        return ["MASK", "MASK_FOR_PNG", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID"]


def get_input(request: Request, name: str) -> Tensor:
    return request.inputs[name]


@pytest.fixture
def on_gpu_1(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return what starts an instance of a model on the second GPU, where the CPU stands in for that."""
    fake: Any = ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.TritonError, fake.InferenceResponse = Tensor, TritonError, Response
    fake.get_input_tensor_by_name = get_input
    fake.Logger = Logger
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def start(name: str) -> Any:  # noqa: ANN401 - Triton's interface
        folder = REPOSITORY / name
        spec = importlib.util.spec_from_file_location(f"{name}_model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        config = json_format.MessageToDict(read_config(folder / "config.pbtxt"), preserving_proto_field_name=True)
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_instance_kind": "GPU",
                "model_instance_device_id": "1",
            }
        )
        assert chosen == [torch.device("cuda:1")]
        return model

    return start


def test_postprocess_answers_as_on_a_cpu_and_waits_once(
    monkeypatch: pytest.MonkeyPatch, on_gpu_1: Callable[[str], Any]
) -> None:
    waits: list[int] = []

    class OnCpu(mask_ops_cuda.Masker):
        def __init__(self, device: torch.device, *, class_count: int, max_pixels: int) -> None:
            assert device == torch.device("cuda:1")
            super().__init__(torch.device("cpu"), class_count=class_count, max_pixels=max_pixels)

        def wait(self) -> None:
            waits.append(1)

    monkeypatch.setattr(mask_ops_cuda, "Masker", OnCpu)
    model = on_gpu_1("postprocess")
    logits = np.random.default_rng(0).standard_normal((3, 1, 21, 9, 9)).astype(np.float32)
    heights = (40, 0, 42)
    requests = [
        Request(LOGITS=planes, SIZE=np.array([[height, 30]], np.int32), IMAGE_ID=np.array([[2**32 - height]]))
        for planes, height in zip(logits, heights, strict=True)
    ]
    first, refused, last = model.execute(requests)
    assert len(waits) == 1
    assert refused.error.code == TritonError.INVALID_ARG
    assert "SIZE is 0 x 30" in refused.error.message
    for response, planes, height in ((first, logits[0], 40), (last, logits[2], 42)):
        found = response.arrays()
        size = np.array([[height, 30]], np.int32)
        expected = mask_ops.postprocess(planes, size, class_count=21, max_pixels=10**6)
        np.testing.assert_array_equal(found["MASK"], expected.masks)
        np.testing.assert_array_equal(found["MASK_FOR_PNG"], expected.masks)
        np.testing.assert_array_equal(found["CLASS_PIXELS"], expected.class_pixels)
        assert found["CLASS_NAMES"][0][15] == "person"
        assert (found["IMAGE_ID"].dtype, found["IMAGE_ID"].tolist()) == (np.int64, [[2**32 - height]])


def test_a_gpu_that_fails_fails_all_but_what_was_refused(
    monkeypatch: pytest.MonkeyPatch, on_gpu_1: Callable[[str], Any]
) -> None:
    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def start(self, _logits: torch.Tensor, sizes: Any) -> None:  # noqa: ANN401 - numpy's
            if sizes[0, 0] == 0:
                raise logit_tiles.InvalidLogitsError("refused")

        def wait(self) -> None:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(mask_ops_cuda, "Masker", Broken)
    model = on_gpu_1("postprocess")
    logits = np.zeros((1, 21, 2, 2), np.float32)
    requests = [
        Request(LOGITS=logits, SIZE=np.array([[side, 3]], np.int32), IMAGE_ID=np.ones((1, 1))) for side in (3, 0)
    ]
    failed, refused = model.execute(requests)
    assert (failed.error.code, refused.error.code) == (TritonError.INTERNAL, TritonError.INVALID_ARG)
    assert "CUDA error" in failed.error.message


def test_preprocess_hands_on_a_tensor_of_torch(monkeypatch: pytest.MonkeyPatch, on_gpu_1: Callable[[str], Any]) -> None:
    class OnCpu(image_ops_cuda.Preprocessor):
        def __init__(self, device: torch.device, settings: image_ops.Settings) -> None:
            assert device == torch.device("cuda:1")
            super().__init__(torch.device("cpu"), settings)

    monkeypatch.setattr(image_ops_cuda, "Preprocessor", OnCpu)
    model = on_gpu_1("preprocess")
    data = pictures.encoded(pictures.cat((90, 60)), "PNG")
    good, bad = model.execute([Request(IMAGE=np.array([[each]], np.object_)) for each in (data, b"no")])
    found = good.arrays()
    assert found["PIXELS"].shape == (1, 520, 520, 3)
    assert found["SIZE"].tolist() == [[60, 90]]
    assert (found["IMAGE_ID"].dtype, found["IMAGE_ID"].tolist()) == (np.int64, [[binascii.crc32(data)]])
    assert bad.error.code == TritonError.INVALID_ARG
