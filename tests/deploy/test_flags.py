"""Every option that a deployment gives tritonserver is in the wheel's --help, or in a newer Triton."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import VARIANTS, server
from wheel import options

from deeplabv3.embedded import limits

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
# The release that introduced an option: the first tag of the server's repository that has it.
NEWER = {
    "grpc-infer-thread-count": (25, 4),  # v2.57.0
    "http-max-input-size": (25, 6),  # v2.59.0
}


def container_release() -> tuple[int, int]:
    """Return year and month of the container that deploy/Dockerfile builds from."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    found = re.search(r"^ARG TRITON_IMAGE=\S+/tritonserver:(\d+)\.(\d+)-py3$", dockerfile, re.MULTILINE)
    assert found is not None
    return int(found[1]), int(found[2])


def compose_options(service: str) -> list[str]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content["services"][service]["command"]


GIVEN = {
    "entrypoint.sh": re.findall(r"\B--[a-z-]+=\S*", (ROOT / "deploy" / "entrypoint.sh").read_text()),
    "compose": compose_options("triton"),
    "compose cpu": compose_options("triton-cpu"),
    "kserve": yaml.safe_load((ROOT / "deploy" / "kserve" / "serving-runtime.yaml").read_text())["spec"]["containers"][
        0
    ]["args"],
    **{f"chart, {name}": server(values)["args"] for name, values in VARIANTS.items()},
}


def names(given: list[str]) -> set[str]:
    return {re.fullmatch(r"--([a-z-]+)=.*", option)[1] for option in given}  # pyright: ignore[reportOptionalSubscript] fails


@pytest.fixture(scope="module")
def known() -> set[str]:
    found = options()
    assert {"model-repository", "exit-timeout-secs"} <= found
    return found


@pytest.mark.parametrize("place", GIVEN)
def test_every_option_is_known(known: set[str], place: str) -> None:
    given = names(GIVEN[place])
    assert given
    for name in sorted(given - known):
        assert name in NEWER, f"{name} of {place} is no option of tritonserver"
        assert NEWER[name] <= container_release()


def test_the_table_lists_only_options_that_are_given_and_newer_than_the_wheel(known: set[str]) -> None:
    assert not NEWER.keys() & known
    assert set(NEWER) <= {name for given in GIVEN.values() for name in names(given)}


def test_compose_chart_and_kserve_give_the_same_but_for_the_age_of_connections() -> None:
    """On one machine, there is nothing to balance."""
    aged = {"--grpc-max-connection-age=20000", "--grpc-max-connection-age-grace=60000"}
    assert set(GIVEN["chart, defaults"]) == set(GIVEN["kserve"]) == set(GIVEN["compose"]) | aged
    assert GIVEN["compose"] == GIVEN["compose cpu"]


def test_the_container_can_bound_a_queue() -> None:
    """The build can set it, but before 26.08 it stalls (triton-inference-server/server#8870)."""
    assert container_release() >= (26, 8)


def test_pictures_of_the_most_pixels_fit_a_request_over_http() -> None:
    config = (ROOT / "model_repository" / "preprocess" / "config.pbtxt").read_text()
    pixels = re.search(r'key: "max_pixels"\s*value[^"]*string_value: "(\d+)"', config)
    assert pixels is not None
    (limit,) = [option for option in GIVEN["compose"] if option.startswith("--http-max-input-size=")]
    assert int(limit.partition("=")[2]) == limits.LARGEST_REQUEST_BYTES
    assert 3 * int(pixels[1]) < limits.LARGEST_REQUEST_BYTES  # as PPM, the format in which the client sends arrays


def test_envoy_lets_the_largest_request_pass_and_no_larger_one() -> None:
    text = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    assert re.findall(r"max_request_bytes: (\d+)", text) == [str(limits.LARGEST_REQUEST_BYTES)]
