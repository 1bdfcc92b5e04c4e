"""Invalid replies: each becomes a SegmentationError, quickly and without filling the memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from drivers import Kind, connected
from PIL import Image
from script_servers import RawServer, Script, Server, elements, http_answer, image_id, url

from deeplab_client import (
    InvalidImageError,
    MismatchedReplyError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerUnavailableError,
)

pytestmark = pytest.mark.unit

PIXELS = np.zeros((2, 3, 3), np.uint8)


def failure(kind: Kind, answer: bytes, **options: Any) -> SegmentationError:  # noqa: ANN401 - the client's
    server = RawServer(lambda _: answer)
    try:
        with (
            connected(kind, server.url, timeout=20, retries=0, **options) as client,
            pytest.raises(SegmentationError) as caught,
        ):
            client.segment(b"\x05")
    finally:
        server.stop()
    assert len(str(caught.value)) < 1000
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"[" * 200_000),
        http_answer(b"{}", "Inference-Header-Content-Length: 1.5"),
        http_answer(b"{}", f"Inference-Header-Content-Length: {'9' * 30}"),
        http_answer(b'{"outputs": [null]}'),
        http_answer(b'{"id": ["x"], "outputs": []}'),
        http_answer(b'{"outputs": [{"parameters": {"binary_data_size": 1e400}}]}'),
        http_answer(b" " * 2_000_000 + b"{}"),
        http_answer(b"xx", "Content-Encoding: br"),
        http_answer(gzip.compress(b"{}", mtime=0), "Content-Encoding: gzip"),
        http_answer(b"[" * 60_000, status=500),
        http_answer(b'{"error": null}', status=500),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_model_error(kind: Kind, answer: bytes) -> None:
    assert type(failure(kind, answer)) is ModelError


def test_a_missing_part_of_a_reply_is_named(kind: Kind) -> None:
    assert "cannot be read: it has no 'outputs'" in str(failure(kind, http_answer(b"{}")))


@pytest.mark.parametrize("size", [b"-5", b"zz"])
def test_a_chunk_without_a_size_is_not_a_reply(kind: Kind, size: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n{}\r\n0\r\n\r\n" % size
    assert type(failure(kind, answer)) is ServerUnavailableError


@pytest.mark.parametrize("length", [10**12, 10**30])
def test_an_announced_length_is_not_allocated(kind: Kind, length: int) -> None:
    answer = http_answer(b'{"a": 1}', "Connection: close", length=length)
    server = RawServer(lambda _: answer)
    with (
        connected(kind, server.url, timeout=0.5, retries=0) as client,
        pytest.raises(SegmentationError),
    ):
        client.segment(b"\x05")
    server.stop()


def test_a_bomb_is_not_unpacked(kind: Kind) -> None:
    packer = zlib.compressobj(1, wbits=31)
    packed = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(100)), packer.flush()])
    tracemalloc.start()
    try:
        refused = failure(kind, http_answer(packed, "Content-Encoding: gzip", status=503), compression="gzip")
        assert type(refused) is ServerUnavailableError
        assert type(failure(kind, http_answer(packed, "Content-Encoding: gzip"))) is ModelError
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_an_unpacked_answer_has_an_end(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab_client._v2._LONGEST_REPLY", 100_000)
    answer = http_answer(gzip.compress(bytes(200_000)), "Content-Encoding: gzip")
    assert "longer than 100000 bytes" in str(failure(kind, answer, compression="gzip"))
    assert "longer than 100000 bytes" in str(failure(kind, http_answer(bytes(200_000))))
    early = http_answer(gzip.compress(b'{"outputs": []}')[:-4], "Content-Encoding: gzip")
    assert "ends early" in str(failure(kind, early, compression="gzip"))


def test_only_the_quoted_part_of_an_error_page_is_read(kind: Kind) -> None:
    error = failure(kind, http_answer(json.dumps({"error": "x" * 1_000_000}).encode(), status=400))
    assert str(error).startswith('HTTP status 400: {"error": "xxx')
    assert "xxx... (" in str(failure(kind, http_answer(json.dumps({"error": "x" * 10_000}).encode(), status=400)))


def test_statuses_of_proxies_are_named(kind: Kind) -> None:
    moved = failure(kind, http_answer(b"", "Location: http://127.0.0.1:9/elsewhere", status=307))
    assert "307" in str(moved)
    assert "http://127.0.0.1:9/elsewhere" in str(moved)
    assert type(failure(kind, http_answer(b"", status=408))) is ServerUnavailableError
    assert "HTTP status 500" in str(failure(kind, http_answer(b'{"error": null}', status=500)))


def test_an_answer_to_another_request_is_refused_and_its_connection_dropped(kind: Kind) -> None:
    known = Script()
    ids: list[str] = []

    def one_behind(body: bytes) -> bytes:
        head = json.loads(body[: body.index(b"}]}") + 3])
        ids.append(head["id"])
        tensors = known.tensors("", b"\x05", [output["name"] for output in head["outputs"]])
        heads = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, datatype, shape, data in tensors
        ]
        text = json.dumps({"id": ids[0], "model_name": "m", "model_version": "1", "outputs": heads}).encode()
        body = text + b"".join(data for *_, data in tensors)
        return http_answer(body, f"Inference-Header-Content-Length: {len(text)}")

    server = RawServer(one_behind)
    with connected(kind, server.url, retries=0) as client:
        assert client.segment(b"\x05").mask.shape == (3, 5)
        assert server.connections == 1
        with pytest.raises(MismatchedReplyError, match=f"its id is '{ids[0]}', not "):
            client.segment(b"\x05")
        ids.clear()
        client.segment(b"\x05")
    assert server.connections == 2
    server.stop()


@pytest.mark.parametrize("mask_format", ["raw", "png"])
def test_a_mask_of_another_picture_is_refused(server: Server, kind: Kind, mask_format: str) -> None:
    server.script.others = [b"\x09"]
    found, sent = zlib.crc32(b"\x09"), zlib.crc32(b"\x05")
    with connected(kind, url(server), mask_format=mask_format, retries=0) as client:
        with pytest.raises(MismatchedReplyError, match=rf"IMAGE_ID is {found}, not {sent}; restart the server") as told:
            client.segment(b"\x05")
        assert client.segment(b"\x05").mask.shape == (3, 5)
    assert told.value.model == "segment_resnet50"
    assert told.value.request_id == server.script.requests[0]["id"]


@pytest.mark.parametrize("mask_format", ["raw", "png"])
@pytest.mark.parametrize("image", [PIXELS, PIXELS[:, :, 0], Image.fromarray(PIXELS)], ids=["RGB", "gray", "PIL"])
def test_a_mask_of_another_size_is_refused(server: Server, kind: Kind, mask_format: str, image: Any) -> None:  # noqa: ANN401 - any image
    turned = b"P5 2 3 255\n" + bytes(6)
    with connected(kind, url(server), mask_format=mask_format, retries=0) as client:
        assert client.segment(image).mask.shape == (2, 3)
        (sent,) = (request["image"] for request in server.script.requests)
        names = server.script.requests[0]["outputs"]
        server.script.fixed = [*server.script.tensors("", turned, names)[:-1], image_id(sent)]
        with pytest.raises(MismatchedReplyError, match="its mask has 2 x 3 pixels, but the image has 3 x 2"):
            client.segment(image)


def test_a_reply_with_another_id_is_refused(server: Server, kind: Kind) -> None:
    server.script.other_ids = ["theirs"]
    with connected(kind, url(server), retries=0) as client:
        with pytest.raises(MismatchedReplyError, match="its id is 'theirs', not ") as told:
            client.segment(b"\x05")
        assert client.segment(b"\x05").mask.shape == (3, 5)
    assert server.script.requests[0]["id"] in str(told.value)


def test_a_reply_without_an_id_is_taken(server: Server, kind: Kind) -> None:
    server.script.other_ids = [""]
    with connected(kind, url(server), retries=0) as client:
        assert client.segment(b"\x05").mask.shape == (3, 5)


def test_a_reply_without_an_image_id_is_a_model_error(server: Server, kind: Kind) -> None:
    server.script.fixed = [MASK, NAMES]
    with (
        connected(kind, url(server), mask_format="raw", retries=0) as client,
        pytest.raises(ModelError, match="does not answer like a segmentation ensemble: no output IMAGE_ID"),
    ):
        client.segment(b"\x05")


def test_a_refusal_before_the_end_of_a_picture_does_not_hold_up_the_next_call(kind: Kind) -> None:
    server = RawServer(lambda _: http_answer(b"", status=404), longest=1_000_000)
    with connected(kind, server.url, timeout=20, retries=0) as client:
        with pytest.raises(InvalidImageError, match="413"):
            client.segment(bytes(20_000_000))
        with pytest.raises(ModelNotFoundError):
            client.segment(b"\x05", timeout=5)
    server.stop()


MASK = ("MASK", "UINT8", [1, 2, 2], bytes(4))
NAMES = ("CLASS_NAMES", "BYTES", [1, 2], elements(b"a", b"b"))


def test_tensors_that_do_not_fit_are_a_model_error(server: Server, kind: Kind) -> None:
    cases: dict[str, list[tuple[str, str, list[int], bytes]]] = {
        "names as numbers": [MASK, ("CLASS_NAMES", "INT64", [1, 2], bytes(16))],
        "no classes": [MASK, ("CLASS_NAMES", "BYTES", [1, 0], b"")],
        "more classes than a byte tells apart": [MASK, ("CLASS_NAMES", "BYTES", [1, 257], elements(b"a") * 257)],
        "no pixels": [("MASK", "UINT8", [1, 0, 2], b""), NAMES],
        "a class without a name": [("MASK", "UINT8", [1, 2, 2], bytes([0, 0, 2, 0])), NAMES],
        "a huge shape": [("MASK", "UINT8", [1, 2**62, 2**62], bytes(4)), NAMES],
        "a negative shape": [("MASK", "UINT8", [1, 2, -1], bytes(4)), NAMES],
        "another type": [("MASK", "UINT64", [1, 2, 2], bytes(32)), NAMES],
        "an image as text": [MASK, NAMES, ("IMAGE_ID", "BYTES", [1, 1], elements(b"a"))],
        "two images": [MASK, NAMES, ("IMAGE_ID", "INT64", [1, 2], bytes(16))],
        "a mask as text": [("MASK", "BYTES", [1, 1, 1], elements(b"a")), NAMES],
    }
    with connected(kind, url(server), mask_format="raw", retries=0) as client:
        server.script.fixed = [MASK, NAMES, image_id(b"\x05")]
        assert client.segment(b"\x05").pixel_counts == {"a": 4}
        for case, tensors in cases.items():
            server.script.fixed = [image_id(b"\x05"), *tensors]
            try:
                told: object = client.segment(b"\x05")
            except Exception as error:  # noqa: BLE001 - any would do, were it not for the assertion
                told = error
            assert type(told) is ModelError, (case, told)


class Garbage(grpc.GenericRpcHandler):
    """Answers every call, known or not, with an invalid message."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        del handler_call_details
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        del request, context
        return b"\xff\xfe\xfd"


def test_an_invalid_message_is_a_model_error(kind: Kind) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with connected(kind, f"grpc://127.0.0.1:{port}", retries=0) as client:
        with pytest.raises(ModelError):
            client.segment(b"\x05")
        assert not client.is_ready()
    server.stop(None).wait()
