"""What load_tests/perf_analyzer.md has its tools search, and how the result is applied, fits the build."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import build_models
from deeplabv3.repository.config import read_config

pytestmark = pytest.mark.build

FOLDER = Path(__file__).resolve().parents[2] / "load_tests"
RECIPE = (FOLDER / "perf_analyzer.md").read_text(encoding="utf-8")
SEARCH = yaml.safe_load((FOLDER / "model_analyzer.yaml").read_text(encoding="utf-8"))
SEARCHED = SEARCH["profile_models"]["core_resnet50"]


def test_the_build_takes_the_options_of_the_recipe() -> None:
    commands = re.findall(r"^\.venv/bin/python build_models\.py (.+)$", RECIPE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        build_models.parse_arguments(shlex.split(command))


def test_every_setting_that_is_searched_can_be_built(tmp_path: Path) -> None:
    parameters = SEARCHED["model_config_parameters"]
    (group,) = parameters["instance_group"]
    for place in (min, max):
        instances, batch = place(group["count"]), place(parameters["max_batch_size"])
        delay = place(parameters["dynamic_batching"]["max_queue_delay_microseconds"])
        setting = ("--instances", str(instances), "--max-batch-size", str(batch), "--queue-delay", str(delay / 1e6))
        options = ("--device", "cuda", "--variant", "resnet50", *setting, "--model-repository", str(tmp_path))
        assert build_models.main([*options, "--configs-only"]) == 0
        core = read_config(tmp_path / "core_resnet50" / "config.pbtxt")
        assert core.max_batch_size == batch
        assert core.instance_group[0].count == instances
        assert core.dynamic_batching.max_queue_delay_microseconds == delay


@pytest.mark.parametrize(
    "shape", [*SEARCHED["perf_analyzer_flags"]["shape"], *re.findall(r"--shape (\S+?)[`\s]", RECIPE)]
)
def test_the_core_takes_what_it_is_sent(shape: str) -> None:
    name, sizes = shape.split(":")
    config = read_config(FOLDER.parent / "model_repository" / "core_resnet50" / "config.pbtxt")
    dims = {tensor.name: tuple(tensor.dims) for tensor in config.input}[name]
    sent = [int(size) for size in sizes.split(",")]
    assert all(dim in {-1, size} for dim, size in zip(dims, sent, strict=True))


def test_the_images_are_those_of_the_deployment() -> None:
    dockerfile = (FOLDER.parent / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    compose = (FOLDER.parent / "docker-compose.yml").read_text(encoding="utf-8")
    for tag in set(re.findall(r"nvcr\.io/\S+", RECIPE)):
        assert f"TRITON_IMAGE={tag.removesuffix('-sdk')}\n" in dockerfile
    image = SEARCH["triton_docker_image"]
    assert f"${{DEEPLAB_IMAGE:-{image}}}" in compose
    assert set(re.findall(r"deeplab-triton:\S+", RECIPE)) == {image}
