"""serve.py refuses models with a queue limit."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deeplabv3.embedded.checks import check_queues
from deeplabv3.embedded.errors import StartError

pytestmark = pytest.mark.unit

pb: Any = model_config_pb2


def config(text: str) -> Any:  # noqa: ANN401 - tritonclient is untyped
    return text_format.Parse(text, pb.ModelConfig())


def test_queues_without_a_bound_pass() -> None:
    batching = config("dynamic_batching { max_queue_delay_microseconds: 2000 default_queue_policy { } }")
    check_queues({"core": batching, "step": config("dynamic_batching { }"), "ensemble": config("")})


@pytest.mark.parametrize(
    "policy",
    [
        "default_queue_policy { max_queue_size: 128 }",
        "default_queue_policy { default_timeout_microseconds: 100 timeout_action: DELAY }",
        "default_queue_policy { allow_timeout_override: true }",
        "priority_levels: 2 priority_queue_policy { key: 1 value { max_queue_size: 1 } }",
    ],
)
def test_what_makes_the_wheels_server_stall_is_refused(policy: str) -> None:
    configs = {"step": config(""), "core": config(f"dynamic_batching {{ {policy} }}")}
    with pytest.raises(StartError, match=r"^core: config.pbtxt limits the queue, .*without --max-queue-size, or use"):
        check_queues(configs)
