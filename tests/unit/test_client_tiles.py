"""Large pictures in tiles: the requests and the joined result."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drivers
import numpy as np
import pictures
import pytest
from drivers import Awaited, Kind, connected, python
from PIL import Image

from deeplab_client import (
    ClientClosedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ServerOverloadedError,
)
from deeplab_client._transport import Reply
from deeplab_client.testing import FakeTransport, ReceivedRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import Request

pytestmark = pytest.mark.unit

CLASSES = 21


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def by_red(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mask in which the red value of each pixel is its class."""
    return (pixels[:, :, 0] % CLASSES).astype(np.uint8)


class Server(FakeTransport):
    """Finds classes by color; records the outputs of each request, and the number of requests under way."""

    def __init__(self, *, seconds: float = 0.0, failing: int | None = None, **options: Any) -> None:  # noqa: ANN401 - also wrong types
        super().__init__(lambda request: by_red(np.asarray(request.picture)), **options)
        self.outputs: list[tuple[str, ...]] = []
        self.most_at_once = 0
        self._seconds = seconds
        self._failing = failing
        self._at_once = 0
        self._counting = threading.Lock()

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        with self._counting:
            self.outputs.append(request.outputs)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if request.request_id.endswith(f"-{self._failing}"):
                raise ModelError("broken", model=request.model, request_id=request.request_id)
            deadline.pause(self._seconds)
            return super().infer(request, deadline=deadline)
        finally:
            with self._counting:
                self._at_once -= 1


def client_of(kind: Kind, server: FakeTransport, **options: Any) -> Any:  # noqa: ANN401 - a context manager of a Driver
    transport = server if kind == "sync" else Awaited(server, waits=True)
    return connected(kind, "fake", transport=transport, **options)


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "count"),
    [
        ((333, 201), 64, 0.25, 7 * 4),
        ((333, 201), 65, 0.0, 6 * 4),
        ((128, 192), 64, 0.0, 2 * 3),
        ((129, 64), 64, 0.5, 4),
        ((64, 129), 64, 0.5, 4),
        ((70, 333), 100, 0.9, 25),
        ((65, 65), 64, 0.99, 4),
        ((64, 64), 64, 0.25, 1),
        ((50, 201), 300, 0.25, 1),
        ((1, 1), 1040, 0.25, 1),
    ],
)
def test_the_joined_mask_is_that_of_the_whole_picture(
    kind: Kind, size: tuple[int, int], tile: int, overlap: float, count: int
) -> None:
    height, width = size
    picture, server = noise(height, width), Server()
    with client_of(kind, server) as client:
        result = client.segment_tiles(picture, tile=tile, overlap=overlap)
    np.testing.assert_array_equal(result.mask, by_red(picture))
    assert (result.height, result.width) == (height, width)
    assert result.mask.flags.writeable
    assert result.mask.flags.c_contiguous
    assert result.confidence is None
    assert len(server.requests) == count
    # Every tile has its full size, also the last of a row.
    expected = min(width, tile), min(height, tile)
    assert {request.picture.size for request in server.requests} == {expected}


def test_the_more_certain_tile_wins_where_tiles_overlap(kind: Kind) -> None:
    """Each tile is wrong within 8 pixels of its border, with a lower confidence there."""

    def inside(shape: tuple[int, ...]) -> NDArray[np.bool_]:
        where = np.zeros(shape, np.bool_)
        where[8:-8, 8:-8] = True
        return where

    def mask(request: ReceivedRequest) -> NDArray[np.uint8]:
        right = by_red(np.asarray(request.picture))
        return np.where(inside(right.shape), right, (right + 1) % CLASSES).astype(np.uint8)

    def confidence(request: ReceivedRequest) -> NDArray[np.uint8]:
        return np.where(inside(request.picture.size[::-1]), 200, 50).astype(np.uint8)

    picture = noise(150, 203)
    with client_of(kind, FakeTransport(mask, confidence=confidence)) as client:
        result = client.segment_tiles(picture, tile=64, overlap=0.25, confidence=True)
    expected, shown = by_red(picture), inside((150, 203))
    np.testing.assert_array_equal(result.mask[shown], expected[shown])
    np.testing.assert_array_equal(result.mask[~shown], (expected[~shown] + 1) % CLASSES)
    np.testing.assert_array_equal(result.confidence, np.where(shown, 200, 50))


def test_pixels_with_confidence_0_are_joined_too(kind: Kind) -> None:
    def none(request: ReceivedRequest) -> NDArray[np.uint8]:
        return np.zeros(request.picture.size[::-1], np.uint8)

    picture = noise(100, 80)
    with client_of(kind, Server(confidence=none)) as client:
        np.testing.assert_array_equal(client.segment_tiles(picture, tile=64).mask, by_red(picture))


@pytest.mark.parametrize("confidence", [False, True])
def test_a_picture_within_one_tile_is_one_plain_request(kind: Kind, *, confidence: bool) -> None:
    server = Server()
    with client_of(kind, server) as client:
        result = client.segment_tiles(noise(30, 40), confidence=confidence)
    assert [request.request_id for request in server.requests] == [result.request_id]
    assert ["CONFIDENCE" in outputs for outputs in server.outputs] == [confidence]
    assert (result.confidence is not None) == confidence


def test_the_ids_of_the_requests_begin_with_that_of_the_result(kind: Kind) -> None:
    server = Server()
    with client_of(kind, server) as client:
        result = client.segment_tiles(noise(100, 64), tile=64)
    assert {request.request_id for request in server.requests} == {f"{result.request_id}-{n}" for n in (1, 2)}
    assert len(result.request_id) == 32
    assert result.timings is not None
    assert min(result.timings.encode, result.timings.wait, result.timings.decode) > 0


def test_every_form_of_a_picture_can_be_cut(kind: Kind, tmp_path: Path) -> None:
    turned = pictures.jpeg((200, 130), orientation=6)
    path = tmp_path / "cat.jpg"
    path.write_bytes(turned)
    with Image.open(path) as lazy:
        as_shown = np.asarray(lazy.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    np.save(tmp_path / "cat.npy", as_shown)
    gray = np.array(pictures.cat((130, 200)).convert("L"))
    forms: dict[str, tuple[Any, NDArray[np.uint8]]] = {
        "path": (path, as_shown),
        "bytes": (turned, as_shown),
        "file object": (io.BytesIO(turned), as_shown),
        "PIL image": (pictures.opened(path), as_shown),
        "array": (as_shown, as_shown),
        "memory map": (np.load(tmp_path / "cat.npy", mmap_mode="r"), as_shown),
        "floats": (as_shown / np.float32(255), as_shown),
        "gray array": (gray, gray[:, :, np.newaxis]),
        "gray PIL image": (Image.fromarray(gray), gray[:, :, np.newaxis]),
        "animation": (Image.open(io.BytesIO(pictures.animated_webp())), np.asarray(pictures.cat())),
    }
    with client_of(kind, Server()) as client:
        for name, (image, pixels) in forms.items():
            result = client.segment_tiles(image, tile=80)
            np.testing.assert_array_equal(result.mask, by_red(pixels), err_msg=name)


def test_a_frame_is_the_one_at_which_the_call_began(kind: Kind) -> None:
    image = Image.open(io.BytesIO(pictures.animated_webp()))

    def moving_on(request: ReceivedRequest) -> NDArray[np.uint8]:
        image.seek(1)
        return by_red(np.asarray(request.picture))

    with client_of(kind, FakeTransport(moving_on)) as client:
        result = client.segment_tiles(image, tile=200, concurrency=1)
    np.testing.assert_array_equal(result.mask, by_red(np.asarray(pictures.cat())))


def test_a_picture_that_cannot_be_decoded_is_refused_before_anything_is_sent(kind: Kind) -> None:
    server = Server()
    with client_of(kind, server) as client:
        for wrong in (b"not an image", pictures.landscape()[:3000], None):
            with pytest.raises(InvalidImageError):
                client.segment_tiles(wrong)
    assert not server.requests


def test_pillows_limit_of_pixels_holds_and_the_error_names_it(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 megapixels are more than twice the default of 89; the application may raise this limit."""
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 89_478_485
    )  # Pillow's default, which imports of another test may have raised
    huge = pictures.encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with client_of(kind, FakeTransport()) as client:
        with pytest.raises(InvalidImageError, match=r"\(200000000 pixels\).* raise PIL\.Image\.MAX_IMAGE_PIXELS"):
            client.segment_tiles(huge)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        small = pictures.encoded(Image.new("L", (30, 30)), "PNG")
        with pytest.raises(InvalidImageError, match="limit of 200 pixels"):
            client.segment_tiles(small)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert client.segment_tiles(small).width == 30


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"overlap": 1.0}, ValueError),
        ({"overlap": -0.1}, ValueError),
        ({"overlap": float("nan")}, ValueError),
        ({"overlap": "0.5"}, TypeError),
        ({"overlap": True}, TypeError),
        ({"tile": 63}, ValueError),
        ({"tile": 1040.0}, TypeError),
        ({"tile": True}, TypeError),
        ({"concurrency": 0}, ValueError),
        ({"timeout": 0}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_by_name(kind: Kind, options: dict[str, Any], error: type[Exception]) -> None:
    with client_of(kind, FakeTransport()) as client, pytest.raises(error, match=f"^{next(iter(options))} must"):
        client.segment_tiles(noise(100, 100), **options)


def test_the_first_tile_that_fails_is_named_and_the_rest_is_not_sent(kind: Kind) -> None:
    server = Server(failing=3, seconds=0.01)
    with client_of(kind, server) as client, pytest.raises(ModelError) as caught:
        client.segment_tiles(noise(1000, 64), tile=64, overlap=0.25, concurrency=2)
    assert str(caught.value) == "tile x=0, y=96, width=64, height=64: broken"
    assert str(caught.value.request_id).endswith("-3")
    assert len(server.outputs) <= 8  # of 21
    sent = len(server.outputs)
    time.sleep(0.1)
    assert len(server.outputs) == sent


def test_a_picture_within_one_tile_fails_with_the_plain_error(kind: Kind) -> None:
    fake = FakeTransport(answers=[ModelError("broken")])
    with client_of(kind, fake) as client, pytest.raises(ModelError, match=r"^broken$"):
        client.segment_tiles(noise(30, 40))


def test_a_tile_is_tried_again(kind: Kind) -> None:
    picture = noise(100, 64)
    server = Server(answers=[ServerOverloadedError("busy", retry_after=0.01)])
    with client_of(kind, server) as client:
        np.testing.assert_array_equal(client.segment_tiles(picture, tile=64).mask, by_red(picture))
    assert len(server.requests) == 3


def test_the_timeout_is_that_of_the_whole_call(kind: Kind) -> None:
    """21 tiles of 0.1 seconds, one at a time, in half a second."""
    with client_of(kind, Server(seconds=0.1)) as client:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceededError) as caught:
            client.segment_tiles(noise(1000, 64), tile=64, timeout=0.5, concurrency=1)
        assert time.monotonic() - begun < 1.5
    found = re.fullmatch(
        r"tile x=0, y=(\d+), width=64, height=64: .*0\.5 s.*; (\d+) of 21 tiles were done", str(caught.value)
    )
    assert found, str(caught.value)
    assert int(found[1]) == 48 * int(found[2])
    assert 1 <= int(found[2]) <= 4


def test_at_most_concurrency_requests_are_under_way(kind: Kind) -> None:
    server = Server(seconds=0.02)
    with client_of(kind, server) as client:
        client.segment_tiles(noise(500, 64), tile=64, concurrency=3)
    assert server.most_at_once == 3


def test_tiles_of_two_model_versions_are_refused(kind: Kind) -> None:
    class Changing(Server):
        def infer(self, request: Request, *, deadline: Deadline) -> Reply:
            reply = super().infer(request, deadline=deadline)
            return Reply(reply.outputs, reply.model_name, "2" if request.request_id.endswith("-2") else "1")

    with client_of(kind, Changing()) as client, pytest.raises(ModelError) as caught:
        client.segment_tiles(noise(100, 64), tile=64)
    assert re.search(r"versions 1 and 2.* again", str(caught.value))
    assert caught.value.retryable


def test_a_closed_client_cuts_nothing(kind: Kind) -> None:
    with client_of(kind, FakeTransport()) as client:
        client.close()
        with pytest.raises(ClientClosedError):
            client.segment_tiles(noise(100, 64), tile=64)


@pytest.mark.parametrize("failing", [None, 3])
def test_a_picture_is_free_when_the_call_has_ended(kind: Kind, failing: int | None) -> None:
    """Without the garbage collector, which may run late for such large objects."""
    picture = noise(300, 300)
    held = weakref.ref(picture)
    gc.collect()
    gc.disable()
    try:
        with client_of(kind, Server(failing=failing)) as client:
            with contextlib.suppress(ModelError):
                client.segment_tiles(picture, tile=64)
            del picture
            until = time.monotonic() + 10
            while held() is not None:  # a thread that cuts a tile of a cancelled call ends by itself
                assert time.monotonic() < until
                time.sleep(0.01)
    finally:
        gc.enable()


MEMORY = """
import io, resource, sys
import numpy as np
from PIL import Image
from drivers import Awaited, connected
from deeplab_client.testing import FakeTransport

class Forgetful(FakeTransport):
    def infer(self, request, *, deadline):
        reply = super().infer(request, deadline=deadline)
        self.requests.clear()
        return reply

def mask(request):
    header = request.image[:20].split()
    return np.zeros((int(header[2]), int(header[1])), np.uint8)

kind, form = sys.argv[1:]
server = Forgetful(mask)
with connected(kind, "fake", transport=server if kind == "sync" else Awaited(server, waits=True)) as client:
    client.segment_tiles(np.zeros((100, 100, 3), np.uint8), tile=64)
    file = io.BytesIO()
    Image.new("RGB", (8000, 6000)).save(file, "PNG", compress_level=1)
    image = file.getvalue() if form == "encoded" else np.ones((6000, 8000, 3), np.uint8)
    del file
    open("/proc/self/clear_refs", "w").write("5")
    before = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
    result = client.segment_tiles(image, tile=520, confidence=True, concurrency=4)
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    assert result.mask.shape == (6000, 8000)
print((peak - before) * 1024 / result.mask.size)
"""


@pytest.mark.parametrize(("form", "most"), [("array", 3.5), ("encoded", 7.5)])
def test_memory_is_bounded_by_the_picture_its_mask_and_its_confidence(kind: Kind, form: str, most: float) -> None:
    """Bytes for each of 48 million pixels: an array is there already, a decoded picture takes 4, the result 2."""
    done = python(MEMORY, kind, form, env={**os.environ, "PYTHONPATH": str(Path(drivers.__file__).parent)})
    assert done.returncode == 0, done.stderr
    assert 1.9 < float(done.stdout) < most
