"""Headers, tokens, compression, formats and environment: what is sent, and what no message contains."""

from __future__ import annotations

import asyncio
import logging
import traceback
from io import BytesIO
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from drivers import AsyncDriver, Kind, connected, python
from opentelemetry import trace
from PIL import Image
from script_servers import GrpcServer, HttpServer, Script, Server, elements, url

from deeplab_client import (
    TLS,
    AccessDeniedError,
    AsyncSegmentationClient,
    DeadlineExceededError,
    MismatchedReplyError,
    ModelError,
    SegmentationClient,
    SegmentationError,
    ServerUnavailableError,
    TLSError,
)
from deeplab_client._endpoint import parse_url
from deeplab_client._wire import outputs_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.unit

SECRET = "s3cr3t-bearer-value"  # noqa: S105 - a made up one
PIN = "p1nk"
KEY = "k3y-of-the-restricted-api"
IMAGE = np.full((7, 11, 3), 5, np.uint8)


def test_headers_and_a_token_go_with_every_request(server: Server, kind: Kind) -> None:
    with connected(kind, url(server), headers={"Triton-Key": KEY, "x-team": "maps"}, token=SECRET) as client:
        client.segment(b"\x05")
        client.is_ready()
    assert len(server.script.headers) >= 3
    for sent in server.script.headers:
        assert (sent["triton-key"], sent["x-team"], sent["authorization"]) == (KEY, "maps", f"Bearer {SECRET}")


def test_a_function_gives_a_fresh_token_each_time(server: Server, kind: Kind) -> None:
    tokens = iter(f"token-{number}" for number in range(100))
    with connected(kind, url(server), token=lambda: next(tokens)) as client:
        client.segment(b"\x05")
        client.segment(b"\x05")
    assert [sent["authorization"] for sent in server.script.headers] == [f"Bearer token-{n}" for n in range(3)]


def test_a_token_may_be_awaited_within_the_deadline(server: Server) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return SECRET

    async def never() -> str:
        await asyncio.Event().wait()
        return SECRET

    driver = AsyncDriver(url(server), token=token)
    driver.segment(b"\x05")
    driver.stop()
    assert server.script.headers[0]["authorization"] == f"Bearer {SECRET}"
    driver = AsyncDriver(url(server), token=never)
    with pytest.raises(DeadlineExceededError):
        driver.segment(b"\x05", timeout=0.2)
    for image in (b"\x05", IMAGE):
        with pytest.raises(DeadlineExceededError):
            driver.segment(image, timeout=1e-9)
    driver.stop()


def test_an_exception_of_a_token_function_is_raised_unchanged(server: Server, kind: Kind) -> None:
    def broken() -> str:
        raise TimeoutError("the vault is sealed")

    with connected(kind, url(server), token=broken) as client, pytest.raises(TimeoutError, match="sealed") as caught:
        client.segment(b"\x05")
    assert not isinstance(caught.value, SegmentationError)


@pytest.mark.parametrize("wrong", ["", "two words", "line\nbreak", "ünïcode", 5, b"bytes"])
def test_a_token_that_cannot_be_sent_is_refused_untold(server: Server, kind: Kind, wrong: Any) -> None:  # noqa: ANN401 - also wrong types
    with pytest.raises((ValueError, TypeError)) as direct:
        SegmentationClient("host", token=wrong)
    with connected(kind, url(server), token=lambda: wrong) as client, pytest.raises((ValueError, TypeError)) as called:
        client.segment(b"\x05")
    for caught in (direct, called):
        assert "token" in str(caught.value)
        assert not wrong or repr(wrong).strip("'") not in str(caught.value)
    assert not server.script.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-key", f"{KEY}\r\nHost: elsewhere"),
        ("x-key", f"{KEY}\x00"),
        ("x-key", f"{KEY}ü"),
        ("x key", KEY),
        ("", KEY),
        (":path", KEY),
        ("Content-Length", "5"),
        ("Host", KEY),
        ("transfer-encoding", "chunked"),
        ("grpc-timeout", "1S"),
        ("key-bin", KEY),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_untold(name: str, value: str) -> None:
    for client in (SegmentationClient, AsyncSegmentationClient):
        with pytest.raises(ValueError, match="header") as caught:
            client("host", headers={name: value})
        assert KEY not in str(caught.value)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="authorization"):
        SegmentationClient("host", token=SECRET, headers={"Authorization": "Basic x"})
    with pytest.raises(ValueError, match="grpcs://"):
        SegmentationClient("grpc://host", tls=TLS())
    with pytest.raises(ValueError, match="both"):
        TLS(certificate_file="only.pem")
    wrong: Any = "zip"
    with pytest.raises(ValueError, match="compression"):
        SegmentationClient("host", compression=wrong)
    with pytest.raises(ValueError, match="mask_format"):
        SegmentationClient("host", mask_format=wrong)


def test_no_message_contains_a_secret(server: Server, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"headers": {"x-key": KEY, "x-pin": PIN}, "token": SECRET, "retries": 1}
    told: list[str] = []
    with caplog.at_level(logging.DEBUG), connected(kind, url(server), **options) as client:
        told.append(repr(client.client if isinstance(client, AsyncDriver) else client))
        client.segment(b"\x05")
        for code, status in (
            (grpc.StatusCode.UNAUTHENTICATED, 401),
            (grpc.StatusCode.PERMISSION_DENIED, 403),
            (grpc.StatusCode.UNAVAILABLE, 503),
            (grpc.StatusCode.INTERNAL, 500),
        ):
            # A server may repeat what it was sent.
            message = f"you sent x-key={KEY}, {PIN} and Authorization: Bearer {SECRET}"
            server.script.failures["infer"] = (code if isinstance(server, GrpcServer) else status, message)
            with pytest.raises(SegmentationError) as caught:
                client.segment(b"\x05")
            error = caught.value
            told += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
            told += [repr(error.__cause__), repr(error.__context__)]
    with connected(
        kind, "grpc://127.0.0.1:1" if server.scheme == "grpc" else "http://127.0.0.1:1", **options
    ) as absent:
        with pytest.raises(ServerUnavailableError) as caught:
            absent.segment(b"\x05")
        told += traceback.format_exception(caught.value)
    told += [record.getMessage() for record in caplog.records if record.name == "deeplab_client"]
    assert any("retry" in text for text in told)
    for text in told:
        assert SECRET not in text
        assert KEY not in text
        assert PIN not in text


def test_refused_credentials_are_their_own_error(server: Server, kind: Kind) -> None:
    denied = (grpc.StatusCode.UNAUTHENTICATED, "no") if isinstance(server, GrpcServer) else (401, "no")
    server.script.failures |= {"infer": denied, "config": denied, "ready": denied}
    with connected(kind, url(server)) as client:
        with pytest.raises(AccessDeniedError):
            client.segment(b"\x05")
        with pytest.raises(AccessDeniedError):
            client.is_ready()
        with pytest.raises(AccessDeniedError):
            client.wait_until_ready(timeout=20)


def test_waiting_for_a_server(server: Server, kind: Kind) -> None:
    server.script.failures["ready"] = (grpc.StatusCode.UNAVAILABLE if isinstance(server, GrpcServer) else 503, "soon")
    server.script.failing = 3
    with connected(kind, url(server)) as client:
        client.wait_until_ready(timeout=20)
        assert server.script.failing == 0
        with pytest.raises(DeadlineExceededError, match=r"not ready within 0\.3 s: .*model 'other'"):
            client.wait_until_ready(model="other", timeout=0.3)
        words = "Request for unknown model: 'other' is not found"
        if isinstance(server, GrpcServer):
            server.script.failures = {"config": (grpc.StatusCode.NOT_FOUND, words)}
        else:
            server.script.failures = {"ready": (400, words)}  # an unknown path is a failure of this kind
        server.script.failing = 1_000_000
        with pytest.raises(DeadlineExceededError, match=f"does not serve model 'other': {words}"):
            client.wait_until_ready(model="other", timeout=0.3)
        with pytest.raises(ValueError, match="seconds"):
            client.wait_until_ready(timeout=0)
    server.stop()
    with connected(kind, url(server)) as client, pytest.raises(DeadlineExceededError, match="is not available"):
        client.wait_until_ready(timeout=0.3)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_pixels_and_masks_are_compressed_where_asked_for(
    server: Server,
    kind: Kind,
    compression: Any,  # noqa: ANN401 - a literal
) -> None:
    with connected(kind, url(server), compression=compression) as client:
        plain = client.segment(b"\x05")
        pixels = client.segment(IMAGE)
    assert plain.mask.shape == (3, 5)
    assert pixels.mask.shape == (7, 11)
    assert server.script.requests[1]["image"] == b"P6 11 7 255\n" + bytes([5]) * 231
    if isinstance(server, HttpServer):
        sent = [headers for headers in server.script.headers if "inference-header-content-length" in headers]
        assert [headers.get("content-encoding") for headers in sent] == [None, compression]
        assert {headers["accept-encoding"] for headers in server.script.headers} == {compression}


def test_nothing_is_compressed_by_default(kind: Kind) -> None:
    server = HttpServer(Script())
    with connected(kind, url(server)) as client:
        client.segment(IMAGE)
    assert {headers["accept-encoding"] for headers in server.script.headers} == {"identity"}
    assert not any("content-encoding" in headers for headers in server.script.headers)
    server.stop()


@pytest.mark.parametrize(("mask_format", "name"), [("auto", "MASK"), ("raw", "MASK"), ("png", "MASK_PNG")])
def test_masks_are_the_same_in_either_format(server: Server, kind: Kind, mask_format: Any, name: str) -> None:  # noqa: ANN401 - also wrong types
    with connected(kind, url(server), mask_format=mask_format) as client:
        result = client.segment(b"\x05")
    assert name in server.script.requests[0]["outputs"]
    assert result.mask.tolist() == [[1] * 5, [0] * 5, [0] * 5]
    assert result.mask.dtype == np.uint8
    assert result.mask.flags.writeable
    assert result.mask.flags.c_contiguous
    assert result.timings is not None
    assert min(result.timings.encode, result.timings.wait, result.timings.decode) > 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        *(
            (near, "MASK")
            for near in ("localhost", "127.0.0.1", "[::1]:9", "http://10.1.2.3", "192.168.0.9:1", "[fd00::1]")
        ),
        *((near, "MASK") for near in ("seg", "seg.ml.svc", "seg.ml.svc.cluster.local:8001", "seg.ml.svc.corp.example")),
        *((near, "MASK") for near in ("https://gpu1.internal", "gpu1.local.")),
        *(
            (far, "MASK_PNG")
            for far in ("https://seg.example.com", "8.8.8.8", "[2001:4860:4860::8888]", "internal.example")
        ),
    ],
)
def test_raw_masks_are_for_networks_of_ones_own(url: str, expected: str) -> None:
    assert outputs_of("auto", parse_url(url))[0] == expected


def test_a_trace_is_carried_on(server: Server, kind: Kind) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1)))
    if kind == "sync":
        with SegmentationClient(url(server)) as client, trace.use_span(span):
            client.segment(b"\x05")
            list(client.segment_many([b"\x05"]))  # its threads too
    else:

        async def traced() -> None:
            async with AsyncSegmentationClient(url(server)) as client:
                with trace.use_span(span):
                    await client.segment(b"\x05")
                    assert [_ async for _ in client.segment_many([b"\x05"])]

        asyncio.run(traced())
    expected = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert [headers.get("traceparent") for headers in server.script.headers] == [expected] * 3


def test_the_environment_is_read_on_request_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = {
        "DEEPLAB_URL": "grpcs://seg:9",
        "DEEPLAB_MODEL": "segment_resnet101",
        "DEEPLAB_TIMEOUT": "2.5",
        "DEEPLAB_RETRIES": "0",
        "DEEPLAB_TOKEN": SECRET,
        "DEEPLAB_CA_FILE": str(tmp_path / "absent.pem"),
        "DEEPLAB_COMPRESSION": "",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for kind in (SegmentationClient, AsyncSegmentationClient):
        client = kind.from_env()
        assert "grpcs://seg:9" in repr(client)
        assert "segment_resnet101" in repr(client)
        assert SECRET not in repr(client)
        assert "other" in repr(kind.from_env(model="other"))
        assert "host:7" in repr(kind.from_env(url="grpc://host:7", tls=None))
    with SegmentationClient.from_env() as client, pytest.raises(TLSError, match=r"absent\.pem"):
        client.segment(b"\x05")
    assert "segment_resnet50" in repr(SegmentationClient("host"))


def test_variables_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPLAB_URL", raising=False)
    with pytest.raises(ValueError, match="DEEPLAB_URL"):
        SegmentationClient.from_env()
    monkeypatch.setenv("DEEPLAB_URL", "host")
    monkeypatch.setenv("DEEPLAB_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="DEEPLAB_TIMEOUT"):
        SegmentationClient.from_env()


def test_an_async_client_serves_one_event_loop_at_a_time(server: Server) -> None:
    client = AsyncSegmentationClient(url(server))

    async def use() -> None:
        assert (await client.segment(b"\x05")).mask.shape == (3, 5)

    async def use_and_close() -> None:
        await use()
        with pytest.raises(RuntimeError, match="one event loop at a time"):
            await asyncio.to_thread(asyncio.run, use())
        await client.close()
        await client.close()

    asyncio.run(use_and_close())


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [(np.zeros((9, 9), np.uint8), ModelError), (np.ones((3, 5), np.uint8), MismatchedReplyError)],
    ids=["another size", "other classes"],
)
def test_the_png_of_another_request_is_refused(pixels: npt.NDArray[np.uint8], kind: type[SegmentationError]) -> None:
    """The step that makes the PNG passes on no IMAGE_ID, but the class counts differ."""
    script = Script()
    server = HttpServer(script)
    whole = script.tensors

    def mixed_up(request_id: str, image: bytes, names: list[str]) -> Any:  # noqa: ANN401 - the script's
        png = BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        own = [tensor for tensor in whole(request_id, image, names) if tensor[0] != "MASK_PNG"]
        return [*own, ("MASK_PNG", "BYTES", [1, 1], elements(png.getvalue()))]

    script.tensors = mixed_up
    with (
        SegmentationClient(url(server), mask_format="png", retries=0) as client,
        pytest.raises(kind, match="MASK_PNG"),
    ):
        client.segment(b"\x05")
    server.stop()


LOADED = """
    import sys
    import numpy as np
    import deeplab_client as d
    from deeplab_client.testing import FakeTransport

    known = {"asyncio", "aiohttp", "grpc", "tritonclient", "gevent", "PIL", "torch", "contourpy", "opentelemetry"}

    def tell(*found):
        print(*sorted(known & set(sys.modules)))

    async def ask():
        async with d.AsyncSegmentationClient("http://127.0.0.1:1", retries=0) as client:
            await client.is_ready(timeout=2)

    tell()
    fake = d.SegmentationClient("fake", transport=FakeTransport(np.zeros((2, 2), np.uint8)))
    tell(fake.segment(np.zeros((2, 2), np.uint8)), fake.segment(b"image"))
    tell(d.SegmentationClient("http://127.0.0.1:1", retries=0).is_ready(timeout=2))
    tell(__import__("asyncio").run(ask()))
    tell(d.SegmentationClient("127.0.0.1:1", retries=0).is_ready(timeout=2))
    assert "tritonclient.http" not in sys.modules
"""


def test_libraries_are_only_loaded_when_used() -> None:
    run = python(LOADED)
    told = run.stdout.splitlines()
    assert told == ["", "", "", "aiohttp asyncio", "aiohttp asyncio grpc tritonclient"], run.stderr
