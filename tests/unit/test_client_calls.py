"""Calls of both clients, with a fake instead of the server."""

from __future__ import annotations

import logging
import pickle
import struct
import traceback
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import Awaited, Kind, connected
from PIL import Image

import deeplab_client
from deeplab_client import (
    AccessDeniedError,
    AsyncSegmentationClient,
    ClientClosedError,
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    ModelError,
    ModelNotFoundError,
    SegmentationClient,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    TLSError,
    UnknownClassError,
    UnsupportedError,
)
from deeplab_client._transport import ModelConfig, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

    from deeplab_client import ServerInfo
    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import Request

pytestmark = pytest.mark.unit

IMAGE = np.zeros((2, 3, 3), np.uint8)
PASSWORD = "hunter/22"  # noqa: S105 - not a real token


def outputs() -> dict[str, Any]:
    mask = np.array([[[0, 2, 2], [0, 0, 0]]], np.uint8)
    mask.setflags(write=False)
    names = np.array([[b"__background__", b"cat", "Küken".encode()]], np.object_)
    return {
        "MASK": mask,
        "CLASS_NAMES": names,
        "IMAGE_ID": np.array([[zlib.crc32(b"P6 3 2 255\n" + bytes(18))]]),  # of IMAGE as it is sent
    }


class Fake:
    """A server as the client sees it; set the attributes to script it."""

    def __init__(self) -> None:
        self.outputs = outputs()
        self.weights: str | None = "COCO_WITH_VOC_LABELS_V1"
        self.background: str | None = "true"
        self.infer_error: Exception | None = None
        self.config_error: Exception | None = None
        self.calls: list[str] = []
        self.timeouts: list[float] = []

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        self.calls.append(f"infer {request.model}")
        self.timeouts.append(deadline.remaining())
        if self.infer_error:
            raise self.infer_error
        return Reply(self.outputs, request.model, "7")

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        self.calls.append(f"config {model}")
        self.timeouts.append(deadline.remaining())
        if self.config_error:
            raise self.config_error
        parameters = {"weights": self.weights, "background": self.background}
        return ModelConfig({name: value for name, value in parameters.items() if value is not None})

    def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        raise NotImplementedError  # not used in these tests

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        raise NotImplementedError  # the same

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        self.timeouts.append(deadline.remaining())
        if self.infer_error:
            raise self.infer_error
        return model == "segment_resnet50"

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def client(fake: Fake, kind: Kind) -> Iterator[Driver]:
    transport = fake if kind == "sync" else Awaited(fake)
    with connected(kind, "host", transport=transport, retries=0) as client:
        yield client


def test_a_result_has_the_names_and_version_from_the_server(client: Driver) -> None:
    result = client.segment(IMAGE)
    assert result.mask.tolist() == [[0, 2, 2], [0, 0, 0]]
    assert result.mask.dtype == np.uint8
    assert result.class_names == ("__background__", "cat", "Küken")
    assert list(result.pixel_counts.items()) == [("__background__", 4), ("Küken", 2)]
    assert (result.model_name, result.model_version) == ("segment_resnet50", "7")
    assert result.weights == "COCO_WITH_VOC_LABELS_V1"
    assert not result.untrained
    assert result.background


@pytest.mark.parametrize(("told", "background"), [("true", True), ("false", False), (None, True)])
def test_the_config_has_whether_class_0_is_a_background(
    client: Driver, fake: Fake, told: str | None, *, background: bool
) -> None:
    fake.background = told
    result = client.segment(IMAGE)
    assert result.background is background
    assert result.top_class == ("Küken" if background else "__background__")


def test_the_mask_is_the_callers_own(client: Driver, fake: Fake) -> None:
    mask = client.segment(IMAGE).mask
    assert mask.flags.writeable
    assert mask.flags.c_contiguous
    assert mask.base is None
    mask[:] = 9
    assert fake.outputs["MASK"].max() == 2


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("MASK", None),
        ("CLASS_NAMES", None),
        ("IMAGE_ID", None),
        ("IMAGE_ID", np.zeros((1, 2), np.int64)),
        ("IMAGE_ID", np.zeros((1, 1), np.float32)),
        ("MASK", np.zeros((1, 2, 3), np.int64)),
        ("MASK", np.zeros((2, 3), np.uint8)),
        ("CLASS_NAMES", np.array([[4, 2]])),
    ],
)
def test_a_reply_that_breaks_the_contract_is_a_model_error(
    client: Driver, fake: Fake, name: str, tensor: object
) -> None:
    fake.outputs[name] = tensor
    with pytest.raises(ModelError, match=name) as caught:
        client.segment(IMAGE)
    assert caught.value.model == "segment_resnet50"
    assert caught.value.request_id


def test_an_invalid_png_is_a_model_error(client: Driver, fake: Fake) -> None:
    file = BytesIO()
    Image.new("L", (3, 2)).save(file, "PNG")
    head, end = file.getvalue()[:-12], file.getvalue()[-12:]
    # An empty color profile, beyond whose end Pillow reads.
    broken = head + struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP")) + end
    del fake.outputs["MASK"]
    fake.outputs["CLASS_PIXELS"] = np.array([[6, 0, 0]])
    for png, fits in ((file.getvalue(), True), (broken, False), (head[:33], False)):
        fake.outputs["MASK_PNG"] = np.array([[png]], np.object_)
        if fits:
            assert client.segment(IMAGE).mask.shape == (2, 3)
        else:
            with pytest.raises(ModelError, match="MASK_PNG cannot be decoded"):
                client.segment(IMAGE)


def test_models_are_chosen_per_client_and_per_call(fake: Fake) -> None:
    client = SegmentationClient("host", model="mine", transport=fake)
    client.segment(IMAGE)
    client.segment(IMAGE, model="segment_resnet101")
    assert fake.calls == ["config mine", "infer mine", "config segment_resnet101", "infer segment_resnet101"]


@pytest.mark.parametrize("model", ["", "a\nb", "\ud800", b"name", 5])
def test_an_invalid_model_name_is_refused(client: Driver, fake: Fake, model: Any) -> None:  # noqa: ANN401 - also wrong types
    for call in (
        lambda: SegmentationClient("host", model=model),
        lambda: client.segment(IMAGE, model=model),
        lambda: client.is_ready(model=model),
        lambda: client.wait_until_ready(model=model),
    ):
        with pytest.raises((ValueError, TypeError), match=r"^model must be"):
            call()
    assert not fake.calls


def test_weights_are_fetched_once_a_model(client: Driver, fake: Fake) -> None:
    assert [client.segment(IMAGE).weights for _ in range(3)] == ["COCO_WITH_VOC_LABELS_V1"] * 3
    assert fake.calls.count("config segment_resnet50") == 1


def test_untrained_weights_are_reported_and_logged_once(
    client: Driver, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.weights = "none"
    with caplog.at_level(logging.WARNING, "deeplab_client"):
        results = [client.segment(IMAGE) for _ in range(2)]
    assert all(result.untrained for result in results)
    assert len([record for record in caplog.records if "untrained" in record.message]) == 1


@pytest.mark.parametrize("refusal", [AccessDeniedError, UnsupportedError, ModelNotFoundError, None])
def test_weights_are_unknown_if_the_server_does_not_name_them(
    client: Driver, fake: Fake, refusal: type[SegmentationError] | None
) -> None:
    fake.config_error, fake.weights = refusal and refusal("no"), None
    results = [client.segment(IMAGE) for _ in range(2)]
    assert [(result.weights, result.untrained) for result in results] == [(None, False)] * 2
    assert fake.calls.count("config segment_resnet50") == 1


@pytest.mark.parametrize("hiccup", [ModelError, ServerOverloadedError, ServerUnavailableError])
def test_a_hiccup_does_not_pass_for_unknown_weights(
    client: Driver, fake: Fake, hiccup: type[SegmentationError]
) -> None:
    fake.weights = "none"
    fake.config_error = hiccup("for now")
    with pytest.raises(hiccup):
        client.segment(IMAGE)
    fake.config_error = None
    assert client.segment(IMAGE).untrained


@pytest.mark.parametrize("failure", [ServerUnavailableError, DeadlineExceededError])
def test_weights_are_asked_again_after_a_lost_connection(
    client: Driver, fake: Fake, failure: type[SegmentationError]
) -> None:
    client.segment(IMAGE)
    fake.infer_error = failure("gone")
    with pytest.raises(failure):
        client.segment(IMAGE)
    fake.infer_error, fake.weights = None, "none"
    assert client.segment(IMAGE).untrained


def test_a_refused_picture_does_not_forget_the_weights(client: Driver, fake: Fake) -> None:
    client.segment(IMAGE)
    fake.infer_error = InvalidImageError("bad")
    with pytest.raises(InvalidImageError):
        client.segment(IMAGE)
    fake.infer_error = None
    client.segment(IMAGE)
    assert fake.calls.count("config segment_resnet50") == 1


def test_one_deadline_covers_all_that_is_sent(client: Driver, fake: Fake) -> None:
    client.segment(IMAGE, timeout=5)
    config, infer = fake.timeouts
    assert 0 < infer <= config <= 5
    client.segment(IMAGE)
    assert 5 < fake.timeouts[-1] <= 30
    client.segment(IMAGE, timeout=1e300)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 10**400])
def test_timeouts_out_of_range_are_refused(client: Driver, fake: Fake, timeout: float) -> None:
    for call in (
        lambda: SegmentationClient("host", timeout=timeout),
        lambda: client.segment(IMAGE, timeout=timeout),
        lambda: client.is_ready(timeout=timeout),
    ):
        with pytest.raises(ValueError, match="seconds"):
            call()
    assert not fake.calls


@pytest.mark.parametrize("timeout", ["5", True, [1]])
def test_timeouts_that_are_not_numbers_are_refused(client: Driver, timeout: Any) -> None:  # noqa: ANN401 - also wrong types
    with pytest.raises(TypeError, match="seconds"):
        client.segment(IMAGE, timeout=timeout)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("host", "grpc://host:8001"),
        ("host:9", "grpc://host:9"),
        ("grpc://host", "grpc://host:8001"),
        ("http://host", "http://host:8000"),
        ("HTTP://host:80/", "http://host:80"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("10.0.0.1:8001", "grpc://10.0.0.1:8001"),
        ("dns:///host:9", "grpc://host:9"),
        ("grpcs://host", "grpcs://host:8001"),
        ("https://host", "https://host:443"),
        ("http://host/", "http://host:8000,"),
        ("http://host/seg/", "http://host:8000/seg,"),
        ("https://host:4/team-a/seg.v2", "https://host:4/team-a/seg.v2,"),
        ("unix:/run/triton.sock", "unix:///run/triton.sock,"),
        ("unix:///run/triton.sock", "unix:///run/triton.sock,"),
        ("http+unix:///run/triton.sock", "http+unix:///run/triton.sock,"),
    ],
)
def test_accepted_urls(url: str, address: str) -> None:
    assert address in repr(SegmentationClient(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host", "scheme 'ftp'"),
        ("dns://8.8.8.8/host:8001", "scheme 'dns'"),
        ("http://host:8000/v2", "leave out /v2"),
        ("http://host/v2/models/m/infer", "leave out /v2"),
        ("host/models", "gRPC takes no path"),
        ("grpcs://host/seg", "gRPC takes no path"),
        ("http://host/a/../b", r"no \. or \.\."),
        ("http://host/a//b", "single slashes"),
        ("http://host/a%2Fb", "single slashes"),
        ("http://host/seg?x=1", "only have a host, a port and a path"),
        ("unix://host/run/x", "three slashes"),
        ("http+unix:///", "three slashes"),
        ("unix:run/x", "invalid server URL"),
        ("", "the host is missing"),
        ("http://:8000", "the host is missing"),
        ("host:port", "invalid server URL"),
        ("host:70000", "invalid server URL"),
        ("host:0", "from 1 to 65535"),
        ("http://a..b", "the host name is not valid"),
        (f"grpc://{'a' * 64}.example", "the host name is not valid"),
        ("grpc://" + "ab." * 85, "the host name is not valid"),
        ("::1", "invalid server URL"),
        ("my host:8001", "spaces"),
        ("host:8001\n", "spaces"),
    ],
)
def test_other_urls_are_refused_with_the_accepted_forms(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        SegmentationClient(url)
    assert repr(url) in str(caught.value)
    assert "grpc://host:port" in str(caught.value)
    with pytest.raises(ValueError, match=words):
        AsyncSegmentationClient(url)


@pytest.mark.parametrize("form", ["grpc://{}@host", "http://{}@host:1", "{}@host", "dns:///{}@host", "grpc://{}@ho st"])
def test_a_password_in_a_url_is_refused_untold(form: str) -> None:
    with pytest.raises(ValueError, match="only have a host, a port and a path") as caught:
        SegmentationClient(form.format(f"user:{PASSWORD}"))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert "***@ho" in str(caught.value)


def test_a_url_that_is_not_a_string_is_a_type_error() -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match="url"):
        SegmentationClient(nothing)


def test_close_twice_and_use_after_close(fake: Fake) -> None:
    with SegmentationClient("host", transport=fake) as client:
        client.segment(IMAGE)
    client.close()
    assert fake.calls[-1] == "close"
    for call in (lambda: client.segment(IMAGE), client.is_ready):
        with pytest.raises(ClientClosedError, match="closed"):
            call()


def test_is_ready_is_false_if_no_server_answers(client: Driver, fake: Fake) -> None:
    assert client.is_ready()
    assert not client.is_ready(model="other")
    fake.infer_error = ServerUnavailableError("refused")
    assert not client.is_ready()


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InvalidImageError, ValueError),
        (ServerUnavailableError, ConnectionError),
        (TLSError, ConnectionError),
        (ServerOverloadedError, RuntimeError),
        (DeadlineExceededError, TimeoutError),
        (AccessDeniedError, PermissionError),
        (ModelNotFoundError, LookupError),
        (ModelError, RuntimeError),
        (MismatchedReplyError, RuntimeError),
        (UnsupportedError, NotImplementedError),
        (ClientClosedError, RuntimeError),
        (UnknownClassError, KeyError),
    ],
)
def test_errors_pickle_and_are_the_builtin_too(kind: type[SegmentationError], builtin: type[Exception]) -> None:
    error = kind("what happened", model="m", request_id="r", retry_after=2.5)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert type(copy) is kind
    assert isinstance(copy, builtin)
    assert isinstance(copy, SegmentationError)
    assert (copy.message, copy.model, copy.request_id) == ("what happened", "m", "r")
    assert copy.retry_after == 2.5
    worth = ("ServerUnavailableError", "ServerOverloadedError", "MismatchedReplyError", "ClientLimitError")
    assert copy.retryable == (kind.__name__ in worth)
    assert str(copy) == "what happened"
    assert kind.__name__ in deeplab_client.__all__
