"""The configs that --device cuda writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import build_models
from deeplabv3 import VARIANTS
from deeplabv3.repository.config import parse_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.build

CPU, GPU = 2, 1  # KIND_CPU and KIND_GPU in Triton's model_config.proto


def configure(repository: Path, *options: str) -> dict[str, Any]:
    """Write the configs of a repository by the command line; return them by model."""
    command = ["--configs-only", "--weights", "none", "--model-repository", str(repository), *options]
    assert build_models.main(command) == 0
    return {path.parent.name: parse_config(path.read_text()) for path in repository.glob("*/config.pbtxt")}


def where(config: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - tritonclient is untyped
    return [(group.kind, group.count) for group in config.instance_group]


@pytest.mark.parametrize(("size", "dims"), [("1024x512", (512, 1024, 3)), ("256", (256, 256, 3))])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_core_model_warms_up_at_the_size_of_its_pictures(
    tmp_path: Path, device: str, size: str, dims: tuple[int, ...]
) -> None:
    """A warm-up at another size would not help any request; a later build keeps the setting and the size."""
    options = ["--device", device, "--variant", "resnet50"]
    for given in (["--set", f"preprocess.resize_size={size}"], []):
        core = configure(tmp_path, *options, *given)["core_resnet50"]
        assert {tuple(sample.inputs["PIXELS"].dims) for sample in core.model_warmup} == {dims}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_core_batches_for_a_gpu(tmp_path: Path, variant: str) -> None:
    configs = configure(tmp_path, "--device", "cuda")
    core = configs[f"core_{variant}"]
    assert where(core) == [(GPU, 2)]
    assert core.max_batch_size == 32
    assert core.dynamic_batching.max_queue_delay_microseconds == 2000
    # The largest first, each often enough for the executor to settle.
    warmed_up = [(sample.batch_size, sample.count) for sample in core.model_warmup]
    assert warmed_up == [(size, 2) for size in (32, 16, 8, 4, 2, 1)]
    assert {tuple(sample.inputs["PIXELS"].dims) for sample in core.model_warmup} == {(520, 520, 3)}
    direct = configs[f"deeplabv3_{variant}"]
    assert where(direct) == [(GPU, 1)]
    assert direct.max_batch_size == 8  # `out` of 32 pictures takes 700 MB
    assert direct.HasField("dynamic_batching")
    assert core.parameters["ENABLE_WEIGHT_SHARING"].string_value == "true"
    assert core.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_core_refuses_what_its_queue_has_no_place_for(tmp_path: Path, variant: str) -> None:
    name = f"core_{variant}"
    unbounded = configure(tmp_path, "--device", "cuda")
    assert not unbounded[name].dynamic_batching.HasField("default_queue_policy")
    bounded = configure(tmp_path, "--device", "cuda", "--max-queue-size", "128")
    batching = bounded[name].dynamic_batching
    assert batching.default_queue_policy.max_queue_size == 128
    assert batching.default_queue_policy.timeout_action == 0  # REJECT; and no time limit
    assert batching.default_queue_policy.default_timeout_microseconds == 0
    # Nothing else has changed, and the next build without the option takes the bound away.
    for model, config in bounded.items():
        if config.dynamic_batching.HasField("default_queue_policy"):
            config.dynamic_batching.ClearField("default_queue_policy")
        assert unbounded[model] == config
    assert configure(tmp_path, "--device", "cuda") == unbounded


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_core_takes_as_much_of_a_gpu_as_it_is_told_to(tmp_path: Path, variant: str) -> None:
    name = f"core_{variant}"
    default = configure(tmp_path, "--device", "cuda")
    small = configure(tmp_path, "--device", "cuda", "--max-batch-size", "4", "--instances", "1")
    assert where(small[name]) == [(GPU, 1)]
    assert small[name].max_batch_size == 4
    assert [sample.batch_size for sample in small[name].model_warmup] == [4, 2, 1]
    assert small[f"segment_{variant}"].max_batch_size == 4
    assert all(small[step] == default[step] for step in ("preprocess", "postprocess", "encode_mask", "confidence"))
    assert small[f"deeplabv3_{variant}"].max_batch_size == 4
    large = configure(
        *(tmp_path, "--device", "cuda", "--max-batch-size", "48", "--instances", "3", "--queue-delay", "0.0005")
    )
    assert where(large[name]) == [(GPU, 3)]
    assert large[name].dynamic_batching.max_queue_delay_microseconds == 500
    assert [sample.batch_size for sample in large[name].model_warmup] == [48, 32, 16, 8, 4, 2, 1]
    assert large[f"segment_{variant}"] == default[f"segment_{variant}"]
    assert configure(tmp_path, "--device", "cuda") == default


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--device", "cuda"],
        ["--device", "cuda", "--preprocess-device", "cuda"],
        ["--device", "cuda", "--postprocess-device", "cpu"],
        ["--device", "cuda", "--max-batch-size", "2"],
    ],
)
def test_an_ensemble_takes_no_batch_that_a_step_does_not(tmp_path: Path, options: list[str]) -> None:
    configs = configure(tmp_path, *options)
    for variant in VARIANTS:
        ensemble = configs[f"segment_{variant}"]
        steps = [configs[step.model_name] for step in ensemble.ensemble_scheduling.step]
        assert ensemble.max_batch_size <= min(step.max_batch_size for step in steps)


def test_the_steps_go_where_the_core_is_and_back(tmp_path: Path) -> None:
    before = configure(tmp_path)
    configs = configure(tmp_path, "--device", "cuda")
    assert (where(configs["preprocess"]), where(configs["postprocess"])) == ([(CPU, 8)], [(GPU, 2)])
    assert configs["postprocess"].max_batch_size == 32
    assert configs["postprocess"].parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    configs = configure(tmp_path, "--device", "cuda", "--preprocess-device", "cuda", "--postprocess-device", "cpu")
    assert (where(configs["preprocess"]), where(configs["postprocess"])) == ([(GPU, 4)], [(CPU, 4)])
    assert configs["postprocess"].max_batch_size == 8
    assert configs["postprocess"].parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "yes"
    assert configure(tmp_path) == before


def test_settings_take_precedence_and_stay(tmp_path: Path) -> None:
    given = ["preprocess.instances=5", "preprocess.resize_size=512", "postprocess.max_pixels=999"]
    options = [option for setting in given for option in ("--set", setting)]
    for configs in (
        configure(tmp_path, *options),
        configure(tmp_path, "--device", "cuda"),
        configure(tmp_path, "--set", "encode_mask.instances=3"),
    ):
        assert where(configs["preprocess"]) == [(CPU, 5)]
        assert configs["preprocess"].parameters["resize_size"].string_value == "512"
        assert configs["postprocess"].parameters["max_pixels"].string_value == "999"
    configs = configure(tmp_path, "--set", "preprocess.instances=2")
    assert (where(configs["preprocess"]), where(configs["encode_mask"])) == ([(CPU, 2)], [(CPU, 3)])


def test_the_steps_stay_on_the_gpu_while_one_core_is_there(tmp_path: Path) -> None:
    small = ["--weights", "none", "--width-per-group", "4", "--groups", "2", "--model-repository", str(tmp_path)]
    gpu = ["--device", "cuda", "--precision", "fp32", "--max-batch-size", "4"]
    assert build_models.main(["--variant", "resnet50", *gpu, *small]) == 0
    configs = configure(tmp_path, "--variant", "resnet101")
    assert configs["core_resnet50"].max_batch_size == configs["segment_resnet50"].max_batch_size == 4
    assert where(configs["core_resnet101"]) == [(CPU, 1)]
    assert where(configs["core_resnet50"]) == where(configs["postprocess"]) == [(GPU, 2)]
    other_way = ["--device", "cuda", "--preprocess-device", "cuda", "--postprocess-device", "cpu"]
    configure(tmp_path, "--variant", "resnet50", *other_way)
    configs = configure(tmp_path, "--variant", "resnet101")
    assert (where(configs["preprocess"]), where(configs["postprocess"])) == ([(GPU, 4)], [(CPU, 4)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cudnn", "fused"], "add --device cuda"),
        (["--preprocess-device", "cuda"], "add --device cuda"),
        (["--postprocess-device", "cuda"], "add --device cuda"),
        (["--max-queue-size", "128"], "add --device cuda"),
        (["--max-batch-size", "16"], "add --device cuda"),
        (["--instances", "1"], "add --device cuda"),
        (["--queue-delay", "0"], "add --device cuda"),
        (["--device", "cuda", "--max-batch-size", "129"], "must be an integer from 1 to 128, got '129'"),
        (["--device", "cuda", "--instances", "17"], "must be an integer from 1 to 16, got '17'"),
        (["--device", "cuda", "--instances", "0"], "must be an integer from 1 to 16, got '0'"),
        (["--device", "cuda", "--queue-delay", "2000"], "must be a number from 0 to 10, got '2000'"),
        (["--device", "cuda", "--max-queue-size", "0"], "must be an integer from 1 to 4294967295, got '0'"),
        (["--device", "cuda", "--max-queue-size", "4294967296"], "must be an integer from 1 to 4294967295, got"),
        (["--device", "cuda", "--max-queue-size", "many"], "must be an integer from 1 to 4294967295, got 'many'"),
        (
            ["--device", "cuda", "--cudnn", "fused", "--precision", "fp32"],
            "does not work in fp32; use --precision fp16 or tf32",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        build_models.parse_arguments([*options, "--model-repository", "models/mine"])
    assert message in capsys.readouterr().err


def test_the_default_build_may_say_where_its_steps_run() -> None:
    build_models.parse_arguments(["--preprocess-device", "cpu", "--postprocess-device", "cpu"])
