"""The models for direct callers; and that the stand-in backend refuses what the native one refuses."""

from __future__ import annotations

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import wire
from eager_models import VARIANTS, eager
from torch import nn
from triton_process import TritonProcess
from tritonclient.utils import InferenceServerException
from wire import PROTOCOLS

from deeplabv3 import server_statistics
from deeplabv3.embedded.launch import LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from triton_process import Serving

pytestmark = pytest.mark.server


@functools.cache
def eager_logits(variant: str, seed: int, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Return pixels, and the logits that torchvision has for each picture by itself."""
    pixels = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        alone = [eager(variant)(torch.from_numpy(one[None]))["out"].numpy() for one in pixels]
    return pixels, np.concatenate(alone)


# The masks of the ensembles are compared at 520 x 520, in test_pipeline.
@pytest.mark.parametrize("shape", [(1, 3, 133, 200), (3, 3, 97, 66)], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_eager_torchvision(
    server: TritonProcess, variant: str, protocol: wire.Protocol, shape: tuple[int, int, int, int]
) -> None:
    pixels, expected = eager_logits(variant, 3, shape)
    reply = wire.infer(server, protocol, f"deeplabv3_{variant}", {"input": pixels}, ["out"])
    assert reply["out"].shape == expected.shape
    # 1e-4 for logits of order 1; the untrained ResNet-101's are of order 1000.
    assert np.abs(reply["out"] - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("batch", range(1, 9))
def test_every_batch_size_gives_each_picture_its_own_logits(server: TritonProcess, batch: int) -> None:
    pixels, alone = eager_logits("resnet50", 4, (8, 3, 72, 88))
    together = wire.infer(server, "grpc", "deeplabv3_resnet50", {"input": pixels[:batch]}, ["out"])["out"]
    assert np.abs(together - alone[:batch]).max() <= 1e-4 * max(1.0, np.abs(alone).max())


class Doubler(nn.Module):
    """Two outputs, both float32."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first * 2, second * 3


class Half(nn.Module):
    def forward(self, first: torch.Tensor) -> torch.Tensor:
        return first.half()


class BFloat(nn.Module):
    def forward(self, first: torch.Tensor) -> torch.Tensor:
        return first.to(torch.bfloat16)


class Dictionary(nn.Module):
    def forward(self, first: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"double": first * 2}


class Listing(nn.Module):
    def forward(self, first: torch.Tensor) -> list[torch.Tensor]:
        return [first, first]


ROW = np.array([[1, 2, 3]], np.float32)


def config(name: str, inputs: list[str], outputs: list[str], *, extra: str = "") -> str:
    def tensors(kind: str, names: list[str]) -> str:
        return "".join(f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: 3 }}\n' for name in names)

    return (
        f'name: "{name}"\nplatform: "pytorch_libtorch"\nmax_batch_size: 4\n'
        "instance_group { kind: KIND_CPU count: 1 }\n" + tensors("input", inputs) + tensors("output", outputs) + extra
    )


def write_model(repository: Path, name: str, module: nn.Module, text: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    torch.jit.script(module).save(str(version / "model.pt"))
    (version.parent / "config.pbtxt").write_text(text)


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n' for name, value in values.items()
    )


UNKNOWN_PARAMETER = parameters(weights="toy")
# The values that the native backend accepts: ParseBoolValue and ParseIntValue in triton-inference-server/backend.
LOOSE_PARAMETERS = parameters(
    INFERENCE_MODE="On", DISABLE_CUDNN="off", INTRA_OP_THREAD_COUNT="2x", INTER_OP_THREAD_COUNT="-1"
)
# Long enough for requests that are sent at once to meet, whatever else the machine does.
DYNAMIC_BATCHING = "dynamic_batching { max_queue_delay_microseconds: 300000 }\n"
# name -> inputs and outputs of the config, and what comes out when the first input gets ROW, the second 10 * ROW.
MAPPED: dict[str, tuple[list[str], list[str], dict[str, npt.NDArray[Any]]]] = {
    "by_argument": (["second", "first"], ["a", "b"], {"a": 2 * ROW * 10, "b": 3 * ROW}),
    "by_suffix": (["x__1", "y__0"], ["a__1", "b__0"], {"a__1": 3 * ROW, "b__0": 2 * ROW * 10}),
    "by_order": (["x", "y"], ["a__1", "b"], {"a__1": 2 * ROW, "b": 3 * ROW * 10}),
}
REFUSED: dict[str, tuple[nn.Module, list[str], str]] = {
    "half": (Half(), ["out"], "expects torch.float32 for output 'out', but the model provides torch.float16"),
    "bfloat": (BFloat(), ["out"], "expects torch.float32 for output 'out', but the model provides torch.bfloat16"),
    "dictionary": (Dictionary(), ["double"], "must return a tensor or a tuple of tensors, but returned dict"),
    "listing": (Listing(), ["a", "b"], "must return a tensor or a tuple of tensors, but returned list"),
    "too_few": (Half(), ["a", "b"], "output 'b' in config.pbtxt is output 1 of the model, but it has 1"),
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """One server with a model for every case."""
    repository = tmp_path_factory.mktemp("toys")
    for name, (inputs, outputs, _) in MAPPED.items():
        extra = UNKNOWN_PARAMETER + DYNAMIC_BATCHING
        write_model(repository, name, Doubler(), config(name, inputs, outputs, extra=extra))
    loose = config("unnamed", ["first", "second"], ["b", "a"], extra=LOOSE_PARAMETERS)
    write_model(repository, "unnamed", Doubler(), loose)
    late = parameters(LOAD_AT_FIRST_REQUEST="true")
    write_model(repository, "read_late", Half(), config("read_late", ["first", "second"], ["out"], extra=late))
    for name, (module, outputs, _) in REFUSED.items():
        write_model(repository, name, module, config(name, ["first"], outputs))
    with TritonProcess(repository, log=tmp_path_factory.mktemp("log") / "serve.log") as process:
        yield process


def test_requests_that_share_a_batch_get_their_own_rows(toys: TritonProcess) -> None:
    """As a core model on a GPU gets them; one on a CPU takes them one by one."""
    numbers = range(1, 13)
    rows = [np.full((1 + number % 2, 3), number, np.float32) for number in numbers]

    def call(row: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        return wire.infer(toys, "grpc", "by_argument", {"first": row, "second": row}, ["a", "b"])

    before = server_statistics.read(toys.grpc_url)
    with ThreadPoolExecutor(len(rows)) as pool:
        replies = list(pool.map(call, rows))
    for row, reply in zip(rows, replies, strict=True):
        np.testing.assert_array_equal(reply["a"], 2 * row)
        np.testing.assert_array_equal(reply["b"], 3 * row)
    counts = (server_statistics.between(before, server_statistics.read(toys.grpc_url)) or {})["by_argument"]
    assert counts["inferences"] == sum(len(row) for row in rows)
    assert counts["executions"] < len(rows)


@pytest.mark.parametrize("name", MAPPED)
def test_tensors_are_mapped_as_the_native_backend_maps_them(toys: TritonProcess, name: str) -> None:
    inputs, outputs, expected = MAPPED[name]
    reply = wire.infer(toys, "grpc", name, dict(zip(inputs, (ROW, ROW * 10), strict=True)), outputs)
    for output, array in expected.items():
        np.testing.assert_array_equal(reply[output], array)


def test_unnamed_outputs_come_in_alphabetical_order(toys: TritonProcess) -> None:
    reply = wire.infer(toys, "grpc", "unnamed", {"first": ROW, "second": ROW}, None)
    assert list(reply) == ["a", "b"]
    np.testing.assert_array_equal(reply["a"], 3 * ROW)  # by the order of the config, "b" is the first


def test_unknown_parameters_are_ignored_with_a_line_in_the_log(toys: TritonProcess) -> None:
    assert "ignoring parameters that the pytorch backend does not have: weights" in toys.log_tail(1000)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_native_backend_refuses_at_inference_is_refused(toys: TritonProcess, name: str) -> None:
    _, outputs, message = REFUSED[name]
    with pytest.raises(InferenceServerException, match=re.escape(message)):
        wire.infer(toys, "grpc", name, {"first": ROW}, outputs)


def test_a_model_for_direct_callers_is_read_at_its_first_request(toys: TritonProcess) -> None:
    """An unreadable model is an error for its caller, and the server continues."""
    with pytest.raises(InferenceServerException, match="2 inputs, but the model's forward takes 1"):
        wire.infer(toys, "grpc", "read_late", {"first": ROW, "second": ROW}, ["out"])
    np.testing.assert_array_equal(wire.infer(toys, "grpc", "by_order", {"x": ROW, "y": ROW}, ["b"])["b"], 3 * ROW)


def test_a_file_that_was_replaced_before_its_first_request_is_refused(tmp_path: Path, serving: Serving) -> None:
    """The server has read the config of the build before."""
    late = 'parameters { key: "LOAD_AT_FIRST_REQUEST" value { string_value: "true" } }\n'
    write_model(tmp_path / "models", "toy", Half(), config("toy", ["first"], ["out"], extra=late))
    server = serving(tmp_path / "models")
    file = tmp_path / "models" / "toy" / "1" / "model.pt"
    other = tmp_path / "other.pt"
    torch.jit.script(Half()).save(str(other))
    other.replace(file)
    with pytest.raises(InferenceServerException, match="was replaced after the server started; restart the server"):
        wire.infer(server, "grpc", "toy", {"first": ROW}, ["out"])


def test_warm_up_makes_a_model_of_the_wrong_dtype_fail_at_load(tmp_path: Path, serving: Serving) -> None:
    warmup = (
        'model_warmup { name: "one" batch_size: 1 '
        'inputs { key: "first" value { data_type: TYPE_FP32 dims: 3 random_data: true } } }\n'
    )
    write_model(tmp_path / "models", "toy", Half(), config("toy", ["first"], ["out"], extra=warmup))
    # 2.51 may crash while it takes down an instance whose warm-up failed; the log names the cause all the same.
    with pytest.raises(LaunchError, match=r"the model provides torch\.float16"):
        serving(tmp_path / "models")


def test_a_config_with_more_inputs_than_forward_takes_fails_at_load(tmp_path: Path, serving: Serving) -> None:
    write_model(tmp_path / "models", "toy", Half(), config("toy", ["first", "second"], ["out"]))
    with pytest.raises(LaunchError, match="2 inputs, but the model's forward takes 1"):
        serving(tmp_path / "models")


def test_parameters_that_the_native_backend_cannot_parse_fail_at_load(tmp_path: Path, serving: Serving) -> None:
    for name, wrong in (("switch", {"INFERENCE_MODE": "yes"}), ("count", {"INTRA_OP_THREAD_COUNT": "x2"})):
        text = config(name, ["first"], ["out"], extra=parameters(**wrong))
        write_model(tmp_path / "models", name, Half(), text)
    with pytest.raises(LaunchError) as caught:
        serving(tmp_path / "models")
    assert "INFERENCE_MODE must be 'true' or 'false', got 'yes'" in str(caught.value)
    assert "INTRA_OP_THREAD_COUNT must be an integer, got 'x2'" in str(caught.value)
