"""The images that callers can pass, and the bytes that reach the server."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import picture_files
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from deeplab_client import InvalidImageError, SegmentationClient
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deeplab_client.testing import ReceivedRequest

pytestmark = pytest.mark.unit

ORIENTATION = 0x0112


def fitting(request: ReceivedRequest) -> NDArray[np.uint8]:
    """Return a mask of the size of a picture sent as pixels, and of one pixel for an encoded one."""
    pixels = request.image.startswith((b"P5", b"P6"))
    return np.zeros(Image.open(io.BytesIO(request.image)).size[::-1] if pixels else (1, 1), np.uint8)


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport(fitting)


@pytest.fixture
def send(fake: FakeTransport) -> Callable[[Any], bytes]:
    client = SegmentationClient("host", transport=fake)

    def send(image: Any) -> bytes:  # noqa: ANN401 - also wrong types
        client.segment(image)
        return fake.requests[-1].image

    return send


def seen_by_server(sent: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(sent)).convert("RGB"))


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_encoded_images_are_sent_unchanged(send: Callable[[Any], bytes], tmp_path: Path) -> None:
    data = b"no image at all\x00\x00"
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for image in (str(path), path, data, bytearray(data), memoryview(data)):
        assert send(image) == data


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1, 3), (5, 7, 4)])
def test_arrays_arrive_without_loss_and_without_alpha(send: Callable[[Any], bytes], shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    colors = array.reshape(*shape[:2], -1)[:, :, :3]
    sent = send(array)
    assert (seen_by_server(sent) == colors).all()
    assert len(sent) < colors.size + 20
    assert send(array / 255) == sent


def test_views_of_arrays_are_sent_as_their_own_pixels(send: Callable[[Any], bytes]) -> None:
    array = noise(10, 14, 3)
    for view in (array[:, :, ::-1], array[::2, 3:9], np.asfortranarray(array), array.transpose(1, 0, 2)):
        assert (seen_by_server(send(view)) == view).all()


def test_a_large_array_is_copied_once() -> None:
    array = np.zeros((2000, 2000, 3), np.uint8)
    client = SegmentationClient("host", transport=FakeTransport(answers=[InvalidImageError("no mask")]))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImageError, match="no mask"):
            client.segment(array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * array.nbytes


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_arrive_as_pillow_shows_them(send: Callable[[Any], bytes], mode: str) -> None:
    image = Image.fromarray(noise(6, 9, 3))
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    assert (seen_by_server(send(image)) == np.asarray(image.convert("RGB"))).all()


def test_a_picture_that_pillow_has_still_to_load_may_be_in_several_calls(fake: FakeTransport, tmp_path: Path) -> None:
    """Pillow's load is only safe in one thread."""
    path = tmp_path / "a.png"
    pixels = noise(300, 400, 3)
    Image.fromarray(pixels).save(path)
    client = SegmentationClient("host", transport=fake)
    calls = 4
    with ThreadPoolExecutor(calls) as pool:
        for _ in range(20):
            start = threading.Barrier(calls)

            def segment(image: Image.Image, start: threading.Barrier = start) -> None:
                start.wait(30)
                client.segment(image)

            with Image.open(path) as image:
                list(pool.map(segment, [image] * calls))
    assert len(fake.requests) == 20 * calls
    assert all((seen_by_server(request.image) == pixels).all() for request in fake.requests)


def test_premultiplied_alpha_is_undone(send: Callable[[Any], bytes]) -> None:
    for image, mode in (
        (Image.fromarray(noise(6, 9, 4)).convert("RGBa"), "RGBA"),
        (Image.fromarray(noise(6, 9)).convert("LA").convert("La"), "LA"),
    ):
        assert (seen_by_server(send(image)) == np.asarray(image.convert(mode).convert("RGB"))).all()


def test_a_palette_with_transparent_entries_keeps_its_colors(send: Callable[[Any], bytes]) -> None:
    image = Image.fromarray(noise(6, 9, 3)).quantize(16)
    colors = np.asarray(image.convert("RGB"))
    image.info["transparency"] = bytes(range(0, 160, 10))
    assert (seen_by_server(send(image)) == colors).all()


def test_sixteen_bits_are_scaled_not_clipped(send: Callable[[Any], bytes]) -> None:
    wide = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    expected = (wide // 256).reshape(8, 8, 1)
    for image in (Image.fromarray(wide), Image.fromarray(wide.astype(np.int32))):
        assert image.mode in {"I;16", "I"}
        assert (seen_by_server(send(image)) == expected).all()


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(send: Callable[[Any], bytes], orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(noise(6, 9, 3)).save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    image = Image.open(file)
    assert (seen_by_server(send(image)) == expected).all()
    assert image.size == (9, 6), "the caller's image is left alone"


def garbled_exif(array: NDArray[np.uint8]) -> bytes:
    """Return a JPEG whose EXIF block says "turn by 90 degrees" and cannot be written again."""
    entries = ((0x0142, 2, 51, 38), (0x0112, 3, 1, 6 << 16))  # TileWidth as text, Orientation
    ifd = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + ifd + b"\0\0\0\0" + b"x" * 60
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_a_garbled_exif_block_turns_the_picture_as_the_server_does(send: Callable[[Any], bytes]) -> None:
    data = garbled_exif(noise(6, 9, 3))
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert (seen_by_server(send(Image.open(io.BytesIO(data)))) == np.rot90(stored, -1)).all()
    client = SegmentationClient("fake", transport=FakeTransport())
    result = client.segment(data)
    assert result.mask.shape == (9, 6)
    assert (np.asarray(result.overlay(data)) == np.rot90(stored, -1)).all()


def test_any_exception_of_a_pillow_decoder_is_an_error_of_the_image() -> None:
    data = stored("PNG").getvalue()
    broken = data[: data.index(b"IDAT") + 4] + bytes(20)
    for half in (data[:40], broken, stored("TIFF").getvalue()[:60], b"BM" + bytes(60), HEIC[:300]):
        with pytest.raises(InvalidImageError, match=r"cannot be decoded: \w"):
            drawn_on(half, 9, 6)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.int64), "dtype int64.*cast them to uint8"),
        (np.zeros((4, 4, 3), np.complex64), "complex64"),
        (np.zeros((4, 4), np.bool_), r"dtype bool.*astype\(np\.uint8\) \* 255"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\) as an image; accepted"),
        (np.zeros((4,), np.uint8), r"\(4,\) as an image: if it holds .* cv2\.imencode.*array\.tobytes\(\)"),
        (np.frombuffer(b"\xff\xd8\xff\xe0 and more", np.uint8).reshape(-1, 1), r"cv2\.imencode.*array\.tobytes\(\)"),
        (np.zeros((4,), np.float32), r"array of dtype float32 and shape \(4,\) as an image; accepted"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\).*transpose\(1, 2, 0\).*permute"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\).*one image"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 0), np.float32), "empty"),
        (np.full((4, 4), 1.5, np.float32), "dtype float32.*from 1.5 to 1.5 as an image: divide it by 255"),
        (np.array([[-0.25, 1]]), "array of dtype float64.*from -0.25 to 1 as an image; accepted"),
        (np.array([[np.inf, 0]]), "from 0 to inf as an image; accepted"),
        (np.array([[0.5, np.nan]], np.float16), "contains NaN"),
        (Image.new("RGB", (0, 3)), "empty"),
        (Image.new("F", (3, 3)), "mode 'F'"),
        (b"", "^the bytes object is empty$"),
        (memoryview(b"1234").cast("B", (2, 2)), "memoryview"),
        (io.BytesIO(), r"BytesIO object is empty.*seek\(0\)"),
        (io.StringIO("x"), "StringIO object is a text file.*binary"),
        (None, "cannot use None as an image; accepted"),
        (5, "cannot use an object of type int as an image; accepted"),
        (np.array(5), r"array of dtype int64 and shape \(\) as an image; accepted"),
        ("", "the path of the image is empty"),
        ([[1, 2], [3, 4]], "list"),
        ("/no/such/file.jpg", "/no/such/file\\.jpg.*No such file"),
        (
            "https://host/cat.jpg",
            r"'https://host/cat\.jpg': No such file.*; it is a URL: download it and pass the bytes",
        ),
        (Path("s3://bucket/cat.jpg"), "it is a URL: download it"),
        ("file:///tmp/cat.jpg", "it is a URL: pass the path of the file"),
        ("data:image/png;base64,iVBORw0KGgo=", r"it is a data URL: .*base64\.b64decode"),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ\n" * 3, r"image in base64, decode it with base64\.b64decode"),
        ("photos/cat.jpg", r"No such file or directory; the current folder is '/.*'$"),
        ("/photos/cat.jpg", "No such file or directory$"),
        ("nul\x00.jpg", "null.*; pass the bytes of an image as bytes, not as str"),
        (Path("/"), "directory"),
        ("/dev/zero", r"'/dev/zero': it is a device.*file object"),
        (
            "A" * 10_000_000,
            r"cannot read the image 'AAA.*\.\.\. \(10000000 characters\): File name too long; .*b64decode",
        ),
        (np.ma.masked_equal(np.zeros((4, 4, 3), np.uint8), 0), r"masked array.*array\.filled\(0\)"),
        (np.full((4, 4), 1.01), "from 1.01 to 1.01 as an image: divide it by 255"),
    ],
)
def test_anything_else_is_refused_before_the_network(
    send: Callable[[Any], bytes], fake: FakeTransport, image: object, words: str
) -> None:
    with pytest.raises(InvalidImageError, match=words) as caught:
        send(image)
    assert isinstance(caught.value, ValueError)
    assert not fake.requests


@pytest.mark.timeout(20)
def test_pipes_and_sockets_are_not_opened(
    send: Callable[[Any], bytes], fake: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidImageError, match=r"pipe': it is a pipe, not a file"):
        send(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's name is short
        listening.bind("socket")
        with pytest.raises(InvalidImageError, match=r"'socket': it is a socket, not a file"):
            send("socket")
    assert not fake.requests


class NumberedPath:
    """An invalid path."""

    def __fspath__(self) -> int:
        return 7


class NoReader:
    """An object whose `read` is not a method."""

    read = "yes"


class RaisingProperty:
    """An object whose property `read` raises."""

    @property
    def read(self) -> object:
        raise RuntimeError("not connected")


class RaisingMethod:
    """An object whose `read` raises an unusual exception."""

    def read(self) -> bytes:
        raise LookupError("no such blob")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (NumberedPath(), r"cannot get the path of the .*NumberedPath object: .*not int"),
        (NoReader(), r"cannot use an object of type .*NoReader as an image; accepted"),
        (RaisingProperty(), r"cannot get `read` of the .*RaisingProperty object: not connected"),
        (RaisingMethod(), r"cannot read the RaisingMethod object: .*no such blob"),
    ],
)
def test_objects_that_fail_in_ways_of_their_own_are_refused(
    send: Callable[[Any], bytes], image: object, words: str
) -> None:
    with pytest.raises(InvalidImageError, match=words):
        send(image)


def test_an_image_too_large_for_a_request_is_refused_before_it_is_read(
    send: Callable[[Any], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    wide = np.broadcast_to(np.uint8(0), (1 << 15, 1 << 15, 3))  # 3 GiB, of one byte
    tracemalloc.start()
    for image in (path, str(path), wide):
        with pytest.raises(InvalidImageError, match=r"a request holds at most \d+"):
            send(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_released_memoryview_is_refused(send: Callable[[Any], bytes]) -> None:
    view = memoryview(b"picture")
    view.release()
    with pytest.raises(InvalidImageError, match=r"memoryview cannot be read: .*released"):
        send(view)


def test_a_file_object_is_read_from_where_it_stands(send: Callable[[Any], bytes], tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"headpicture")
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for opened in (file, raw, io.BytesIO(b"headpicture")):
            opened.seek(4)
            assert send(opened) == b"picture"
        with pytest.raises(InvalidImageError, match=rf"{path}.*read to its end.*seek\(0\)"):
            send(file)


class NamelessFile(io.BytesIO):
    """A file whose property `name` raises."""

    @property
    def name(self) -> str:
        raise RuntimeError("not saved yet")


def test_a_file_object_needs_no_name(send: Callable[[Any], bytes]) -> None:
    assert send(NamelessFile(b"picture")) == b"picture"


def test_a_file_object_that_does_not_return_bytes_is_refused(send: Callable[[Any], bytes], tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"picture")
    with path.open(encoding="utf-8") as text, pytest.raises(InvalidImageError, match=r"image\.jpg.*text file.*'rb'"):
        send(text)
    with pytest.raises(InvalidImageError, match=r"image\.jpg.*closed"):
        send(text.buffer)
    with path.open("ab") as writer, pytest.raises(InvalidImageError, match="cannot read"):
        send(writer)

    class Upload:
        async def read(self) -> bytes:
            return b"picture"

    class Lines:
        def read(self) -> str:
            return "text"

    with pytest.raises(InvalidImageError, match=r"Upload.*await"):
        send(Upload())
    with pytest.raises(InvalidImageError, match=r"Lines.*returns str"):
        send(Lines())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_floats_arrive_as_the_nearest_of_256_steps(send: Callable[[Any], bytes], dtype: Any) -> None:  # noqa: ANN401 - also wrong types
    exact = (np.arange(256).reshape(16, 16) / 255).astype(dtype)
    assert (seen_by_server(send(exact))[:, :, 0] == np.arange(256).reshape(16, 16)).all()
    between = np.array([[0.2, 0.49, 0.51, 254.6]]) / 255
    assert seen_by_server(send(between.astype(dtype)))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_floats_just_beyond_the_range_are_clipped(send: Callable[[Any], bytes]) -> None:
    over = np.array([[-0.0019, -1e-9, 1.0000001, 1.0019]])
    assert seen_by_server(send(over))[0, :, 0].tolist() == [0, 0, 255, 255]


class ArrayLike:
    """A tensor with `__array__`."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __array__(self, *_: object, **__: object) -> NDArray[Any]:
        return self.array


class DLPackOnly:
    """A tensor with DLPack only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> object:  # noqa: ANN401 - the protocol's
        del keywords
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.array.__dlpack_device__()


class Speechless:
    """An object that fails without a reason."""

    device = "cpu"

    def __array__(self, *_: object, **__: object) -> NDArray[Any]:
        raise ValueError

    def __fspath__(self) -> str:
        raise ValueError


class SpeechlessFile:
    """A file that fails without a reason."""

    def read(self) -> bytes:
        raise ValueError


@pytest.mark.parametrize("wrap", [ArrayLike, DLPackOnly])
def test_objects_that_convert_to_an_array_are_accepted(send: Callable[[Any], bytes], wrap: type) -> None:
    array = noise(5, 7, 3)
    assert send(wrap(array)) == send(array)
    assert send(wrap(array / 255)) == send(array)
    with pytest.raises(InvalidImageError, match=rf"{__name__}.{wrap.__name__} of dtype int32 and shape \(5, 7, 3\)"):
        send(wrap(array.astype(np.int32)))


def test_every_message_has_a_reason(send: Callable[[Any], bytes]) -> None:
    class SpeechlessArray:
        __array__ = Speechless.__array__

    for image in (Speechless(), SpeechlessArray(), SpeechlessFile()):
        with pytest.raises(InvalidImageError, match=": ValueError"):
            send(image)


def stored(kind: str, **options: Any) -> io.BytesIO:  # noqa: ANN401 - those of Pillow
    file = io.BytesIO()
    Image.fromarray(noise(6, 9, 3)).save(file, kind, **options)
    return file


def closed(kind: str) -> Image.Image:
    image = Image.open(stored(kind))
    image.close()
    return image


def left(kind: str, folder: Path) -> Image.Image:
    path = folder / "image"
    path.write_bytes(stored(kind).getvalue())
    with Image.open(path) as image:
        return image


def without_file(kind: str) -> Image.Image:
    file = stored(kind)
    image = Image.open(file)
    file.close()
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF"])
def test_a_closed_picture_is_refused_with_the_remedy(send: Callable[[Any], bytes], kind: str, tmp_path: Path) -> None:
    for image in (closed(kind), left(kind, tmp_path), without_file(kind)):
        with pytest.raises(InvalidImageError, match=r"closed before it was read: call its load\(\) first"):
            send(image)
    with Image.open(stored(kind)) as image:
        image.load()
    assert send(image)
    file = stored(kind)
    file.close()
    with pytest.raises(
        InvalidImageError, match=r"BytesIO object: .*closed file.*; keep it open until the call returns"
    ):
        send(file)


def test_a_picture_class_that_is_about_to_be_loaded_is_nobodys(
    send: Callable[[Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", ModuleType("PIL.Image"))
    assert send(np.zeros((2, 2), np.uint8))


def drawn_on(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Return the overlay of a picture without any classes, which is the decoded picture."""
    client = SegmentationClient("fake", transport=FakeTransport(np.zeros((height, width), np.uint8)))
    return np.asarray(client.segment(b"asked for a mask").overlay(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_orientation_is_that_of_exif_alone(send: Callable[[Any], bytes], kind: str) -> None:
    about = PngInfo()
    about.add_itxt("XML:com.adobe.xmp", picture_files.XMP.decode())
    options: dict[str, Any] = {"PNG": {"pnginfo": about}, "TIFF": {"tiffinfo": {700: picture_files.XMP}}}.get(
        kind, {"xmp": picture_files.XMP}
    )
    data = stored(kind, **options).getvalue()
    right = np.asarray(Image.open(stored(kind)).convert("RGB"))
    assert (drawn_on(data, 9, 6) == right).all()
    if kind != "TIFF":  # which Pillow turns when it loads it
        assert (seen_by_server(send(Image.open(io.BytesIO(data)))) == right).all()
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    options = {**options, "exif": exif} if kind != "TIFF" else {"tiffinfo": {**options["tiffinfo"], ORIENTATION: 3}}
    turned = stored(kind, **options).getvalue()
    assert (drawn_on(turned, 9, 6) == np.rot90(right, 2)).all()
    assert (seen_by_server(send(Image.open(io.BytesIO(turned)))) == np.rot90(right, 2)).all()


def test_overlay_accepts_pictures_with_flawed_metadata() -> None:
    data = stored("PNG").getvalue()
    flawed = data[:33] + picture_files.png_chunk(b"tEXt", b"Title\0cat", sound=False) + data[33:]
    assert (drawn_on(flawed, 9, 6) == noise(6, 9, 3)).all()
    data = stored("JPEG").getvalue()
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 200
    assert (drawn_on(data + video, 9, 6) == np.asarray(Image.open(io.BytesIO(data)))).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (9, 6))]}),
        ("TIFF", {"compression": "tiff_lzw", "save_all": True, "append_images": [Image.new("RGB", (9, 6))]}),
        ("TIFF", {}),
        ("AVIF", {}),
        ("PPM", {}),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (9, 6))]}),
    ],
)
def test_every_format_of_the_server_is_drawn_on_by_its_first_frame(kind: str, options: dict[str, Any]) -> None:
    data = stored(kind, **options).getvalue()
    assert (drawn_on(data, 9, 6) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_sixteen_bits_of_a_file_are_scaled_not_clipped() -> None:
    wide = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "TIFF")
    assert (drawn_on(file.getvalue(), 8, 8) == (wide >> 8)[:, :, np.newaxis]).all()


HEIC = (Path(__file__).parents[1] / "assets" / "quadrants.heic").read_bytes()


def test_heic_is_drawn_on_where_its_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = drawn_on(HEIC, 64, 64).astype(int)
    colors = [(220, 40, 40), (40, 200, 60), (50, 60, 220), (240, 230, 60)]
    for (row, column), color in zip(((8, 8), (8, 56), (56, 8), (56, 56)), colors, strict=True):
        assert abs(picture[row, column] - color).max() < 8  # it is lossy
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(InvalidImageError, match=r"HEIC picture needs pi-heif: pip install './client\[heic\]'"):
        drawn_on(HEIC, 64, 64)


def with_index(*, garbled: bool) -> bytes:
    """Return a JPEG that claims to have more pictures behind it."""
    data = stored("MPO", save_all=True, append_images=[Image.new("RGB", (9, 6))]).getvalue()
    at = data.index(b"MPF\0") + 4
    return data[:at] + b"\xff" * 8 + data[at + 8 :] if garbled else data


def test_a_warning_of_pillow_is_not_an_error(send: Callable[[Any], bytes]) -> None:
    """Warnings are errors in these tests."""
    right = np.asarray(Image.open(stored("JPEG", quality=75)))
    assert (drawn_on(with_index(garbled=True), 9, 6) == right).all()
    data = garbled_exif(noise(6, 9, 3))
    truncated = data[: data.index(b"Exif")] + b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + data[data.index(b"Exif") + 16 :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [Image.open(io.BytesIO(data)) for data in (with_index(garbled=True), truncated)]
    for image in images:
        assert send(image)
    palette = Image.fromarray(noise(6, 9, 3)).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    assert send(palette)


def test_metadata_that_ends_a_process_in_pi_heif_is_left_out() -> None:
    """Metadata that is not UTF-8, which the server accepts."""
    about = {1: picture_files.hevc_item(), 2: (b"\xff\xfe\xfd\xfc", b"x", [])}
    file = picture_files.heif(about, references=[(b"cdsc", 2, [1])])
    code = "import sys; from deeplab_client._picture import opened; print(opened(sys.stdin.buffer.read()).size)"
    done = subprocess.run([sys.executable, "-c", code], input=file, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "(64, 64)"


def test_other_formats_of_pillow_are_not_opened() -> None:
    """As on the server; Pillow runs programs for some of them."""
    file = io.BytesIO()
    Image.new("RGB", (9, 6)).save(file, "EPS")
    for data in (file.getvalue(), b"no picture"):
        with pytest.raises(
            InvalidImageError, match="it is not in JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF or HEIC format"
        ):
            drawn_on(data, 9, 6)


@pytest.mark.parametrize("module", ["image_bytes.py", "image_boxes.py"])
def test_the_client_reads_bytes_as_the_server_does(module: str) -> None:
    root = Path(__file__).resolve().parents[2]
    server = root / "model_repository" / "preprocess" / "1" / module
    assert (root / "client/src/deeplab_client" / f"_{module}").read_bytes() == server.read_bytes()


def test_an_empty_or_truncated_file_is_refused(
    send: Callable[[Any], bytes], fake: FakeTransport, tmp_path: Path
) -> None:
    empty, truncated = tmp_path / "empty.png", tmp_path / "truncated.png"
    empty.touch()
    Image.fromarray(noise(50, 50, 3)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    with pytest.raises(InvalidImageError, match=r"empty\.png.*is empty"):
        send(empty)
    with Image.open(truncated) as image, pytest.raises(InvalidImageError, match="truncated"):
        send(image)
    assert not fake.requests
