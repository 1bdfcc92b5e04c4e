"""The committed model repository, read as Triton would read it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import palette_png
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deeplab_client import voc

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
pb: Any = model_config_pb2


def config(name: str) -> Any:  # noqa: ANN401 - tritonclient is untyped
    return text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text(), pb.ModelConfig())


def dims(tensors: Any) -> dict[str, tuple[str, list[int]]]:  # noqa: ANN401
    return {t.name: (pb.DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in tensors}


C = 21
TENSORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "preprocess": (
        {"IMAGE": ("STRING", [1])},
        {"PIXELS": ("UINT8", [-1, -1, 3]), "SIZE": ("INT32", [2]), "IMAGE_ID": ("INT64", [1])},
    ),
    "core_resnet50": (
        {"PIXELS": ("UINT8", [-1, -1, 3]), "IMAGE_ID": ("INT64", [1])},
        {"LOGITS": ("FP32", [C, -1, -1]), "IMAGE_ID": ("INT64", [1])},
    ),
    "deeplabv3_resnet50": ({"input": ("FP32", [3, -1, -1])}, {"out": ("FP32", [C, -1, -1])}),
    "postprocess": (
        {"LOGITS": ("FP32", [C, -1, -1]), "SIZE": ("INT32", [2]), "IMAGE_ID": ("INT64", [1])},
        {
            "MASK": ("UINT8", [-1, -1]),
            "MASK_FOR_PNG": ("UINT8", [-1, -1]),
            "CLASS_PIXELS": ("INT64", [C]),
            "CLASS_NAMES": ("STRING", [C]),
            "IMAGE_ID": ("INT64", [1]),
        },
    ),
    "encode_mask": ({"MASK": ("UINT8", [-1, -1])}, {"MASK_PNG": ("STRING", [1])}),
    "confidence": (
        {"LOGITS": ("FP32", [C, -1, -1]), "SIZE": ("INT32", [2])},
        {"CONFIDENCE": ("UINT8", [-1, -1])},
    ),
    "segment_resnet50": (
        {"IMAGE": ("STRING", [1])},
        {
            "MASK": ("UINT8", [-1, -1]),
            "CLASS_PIXELS": ("INT64", [C]),
            "CLASS_NAMES": ("STRING", [C]),
            "MASK_PNG": ("STRING", [1]),
            "CONFIDENCE": ("UINT8", [-1, -1]),
            "IMAGE_ID": ("INT64", [1]),
        },
    ),
}
TENSORS.update({f"{kind}_resnet101": TENSORS[f"{kind}_resnet50"] for kind in ("core", "deeplabv3", "segment")})


def test_the_repository_holds_these_models_and_no_other_directory() -> None:
    assert {path.name for path in REPOSITORY.iterdir() if path.is_dir()} == set(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_the_wire_contract(name: str) -> None:
    inputs, outputs = TENSORS[name]
    parsed = config(name)
    assert parsed.name == name
    assert parsed.max_batch_size == 8
    assert dims(parsed.input) == inputs
    assert dims(parsed.output) == outputs


@pytest.mark.parametrize("name", [name for name in TENSORS if not name.startswith("segment")])
def test_every_step_warms_up_and_batches_where_that_pays(name: str) -> None:
    parsed = config(name)
    assert len(parsed.instance_group) == 1
    on_cpu = parsed.instance_group[0].kind == parsed.instance_group[0].KIND_CPU
    assert parsed.HasField("dynamic_batching") != (on_cpu and "resnet" in name)
    # A model that is read at the first request has no warm-up.
    assert bool(parsed.model_warmup) != ("LOAD_AT_FIRST_REQUEST" in parsed.parameters) == name.startswith("deeplabv3")


@pytest.mark.parametrize("variant", ["resnet50", "resnet101"])
def test_the_ensemble_connects_tensors_that_fit(variant: str) -> None:
    """Walk the steps: whatever a step reads exists by then, with the type and shape that it declares."""
    parsed = config(f"segment_{variant}")
    assert parsed.platform == "ensemble"
    assert not parsed.instance_group
    assert not parsed.HasField("dynamic_batching")
    known = dims(parsed.input)
    for step in parsed.ensemble_scheduling.step:
        model = config(step.model_name)
        for name, tensor in step.input_map.items():
            assert known[tensor] == dims(model.input)[name], (step.model_name, name)
        for name, tensor in step.output_map.items():
            known[tensor] = dims(model.output)[name]
    assert {name: known[name] for name in dims(parsed.output)} == dims(parsed.output)
    assert "PIXELS" in known
    # Every step passes IMAGE_ID on, under a name that no other step reads twice.
    ids = [step.output_map["IMAGE_ID"] for step in parsed.ensemble_scheduling.step if "IMAGE_ID" in step.output_map]
    assert ids == ["PIXELS_ID", "LOGITS_ID", "IMAGE_ID"]


def test_the_steps_agree_on_the_largest_picture() -> None:
    steps = ("preprocess", "postprocess", "confidence")
    limits = {config(name).parameters["max_pixels"].string_value for name in steps}
    assert len(limits) == 1


def test_no_file_refers_to_the_stand_in_backend() -> None:
    for path in REPOSITORY.rglob("*"):
        if path.is_file() and path.name != "model.pt" and "__pycache__" not in path.parts:
            text = path.read_bytes()
            assert b"pytorch_backend" not in text, path
            assert b"stand-in" not in text, path


def test_warm_up_data_are_what_triton_expects() -> None:
    data = (REPOSITORY / "preprocess" / "warmup" / "IMAGE").read_bytes()
    assert struct.unpack("<I", data[:4])[0] == len(data) - 4
    assert data[4:].startswith(b"P6\n8 8\n255\n")
    for step in ("postprocess", "confidence"):
        assert struct.unpack("<ii", (REPOSITORY / step / "warmup" / "SIZE").read_bytes()) == (480, 640)


def test_both_steps_that_sample_logits_have_the_same_file() -> None:
    postprocess, confidence = (
        (REPOSITORY / step / "1" / "logit_tiles.py").read_bytes() for step in ("postprocess", "confidence")
    )
    assert postprocess == confidence


def test_the_client_has_the_servers_names_and_colors() -> None:
    labels = (REPOSITORY / "postprocess" / "labels.txt").read_text().splitlines()
    assert list(voc.CLASS_NAMES) == labels
    np.testing.assert_array_equal(voc.PALETTE, palette_png.voc_palette())
