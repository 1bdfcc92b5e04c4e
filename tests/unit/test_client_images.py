"""What a caller may hand in, and what reaches the server."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deeplab_client import InvalidImageError, SegmentationClient
from deeplab_client._transport import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import Request

pytestmark = pytest.mark.unit

ORIENTATION = 0x0112


class Recorder:
    """Keeps what was sent, answers with one pixel."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        del deadline
        self.sent.append(request.image)
        names = np.array([[b"__background__"]], np.object_)
        counts = np.ones((1, 1), np.int64)
        outputs = {"MASK": np.zeros((1, 1, 1), np.uint8), "CLASS_PIXELS": counts, "CLASS_NAMES": names}
        return Reply(outputs, request.model, "1")

    def model_parameters(self, model: str, *, deadline: Deadline) -> dict[str, str]:
        del model, deadline
        return {}

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        del model, deadline
        return True

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def send(recorder: Recorder) -> Callable[[Any], bytes]:
    client = SegmentationClient("host", transport=recorder)

    def send(image: Any) -> bytes:  # noqa: ANN401 wrong types are tested too
        client.segment(image)
        return recorder.sent[-1]

    return send


def seen_by_server(sent: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(sent)).convert("RGB"))


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_encoded_images_go_as_they_are_and_unexamined(send: Callable[[Any], bytes], tmp_path: Path) -> None:
    data = b"no image at all\x00\x00"
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for image in (str(path), path, data, bytearray(data), memoryview(data)):
        assert send(image) == data


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (5, 7, 4)])
def test_colour_arrays_arrive_without_loss_and_without_alpha(
    send: Callable[[Any], bytes], shape: tuple[int, ...]
) -> None:
    array = noise(*shape)
    assert (seen_by_server(send(array)) == array[:, :, :3]).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_arrive_without_loss(send: Callable[[Any], bytes], shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    sent = send(array)
    assert len(sent) < 5 * 7 + 20
    assert (seen_by_server(sent) == array.reshape(5, 7, 1)).all()


def test_views_arrive_as_they_look(send: Callable[[Any], bytes]) -> None:
    array = noise(10, 14, 3)
    for view in (array[:, :, ::-1], array[::2, 3:9], np.asfortranarray(array), array.transpose(1, 0, 2)):
        assert (seen_by_server(send(view)) == view).all()


def test_a_large_array_is_copied_once(send: Callable[[Any], bytes]) -> None:
    array = np.zeros((2000, 2000, 3), np.uint8)
    send(array[:8, :8])
    tracemalloc.start()
    try:
        send(array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * array.nbytes


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_arrive_as_pillow_shows_them(send: Callable[[Any], bytes], mode: str) -> None:
    image = Image.fromarray(noise(6, 9, 3))
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    assert (seen_by_server(send(image)) == np.asarray(image.convert("RGB"))).all()


def test_premultiplied_alpha_is_undone(send: Callable[[Any], bytes]) -> None:
    for image, mode in (
        (Image.fromarray(noise(6, 9, 4)).convert("RGBa"), "RGBA"),
        (Image.fromarray(noise(6, 9)).convert("LA").convert("La"), "LA"),
    ):
        assert (seen_by_server(send(image)) == np.asarray(image.convert(mode).convert("RGB"))).all()


def test_a_palette_with_transparent_entries_keeps_its_colours(send: Callable[[Any], bytes]) -> None:
    image = Image.fromarray(noise(6, 9, 3)).quantize(16)
    colours = np.asarray(image.convert("RGB"))
    image.info["transparency"] = bytes(range(0, 160, 10))
    assert (seen_by_server(send(image)) == colours).all()


def test_sixteen_bits_are_scaled_not_clipped(send: Callable[[Any], bytes]) -> None:
    wide = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    expected = (wide // 256).reshape(8, 8, 1)
    for image in (Image.fromarray(wide), Image.fromarray(wide.astype(np.int32))):
        assert image.mode in {"I;16", "I"}
        assert (seen_by_server(send(image)) == expected).all()


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(send: Callable[[Any], bytes], orientation: int, turns: int) -> None:
    array = noise(6, 9, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", exif=exif)
    image = Image.open(file)
    assert (seen_by_server(send(image)) == np.rot90(array, turns)).all()
    assert image.size == (9, 6), "the caller's image is left alone"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.bool_), "bool"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (Image.new("RGB", (0, 3)), "empty"),
        (Image.new("F", (3, 3)), "mode 'F'"),
        (b"", "empty"),
        (memoryview(b"1234").cast("B", (2, 2)), "memoryview"),
        (io.BytesIO(b"x"), "BytesIO"),
        (None, "NoneType"),
        ([[1, 2], [3, 4]], "list"),
        ("/no/such/file.jpg", "/no/such/file.jpg.*No such file"),
        ("https://host/cat.jpg", "No such file"),
        ("nul\x00.jpg", "null"),
        (Path("/"), "directory"),
    ],
)
def test_anything_else_is_refused_before_the_network(
    send: Callable[[Any], bytes], recorder: Recorder, image: object, words: str
) -> None:
    with pytest.raises(InvalidImageError, match=words) as caught:
        send(image)
    assert isinstance(caught.value, ValueError)
    assert not recorder.sent


def test_an_empty_or_truncated_file_is_refused(
    send: Callable[[Any], bytes], recorder: Recorder, tmp_path: Path
) -> None:
    empty, truncated = tmp_path / "empty.png", tmp_path / "truncated.png"
    empty.touch()
    Image.fromarray(noise(50, 50, 3)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    with pytest.raises(InvalidImageError, match=r"empty\.png.*is empty"):
        send(empty)
    with Image.open(truncated) as image, pytest.raises(InvalidImageError, match="truncated"):
        send(image)
    assert not recorder.sent
