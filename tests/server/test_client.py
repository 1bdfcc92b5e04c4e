"""deeplab_client with a real server, whose core models find classes by color."""

from __future__ import annotations

import functools
import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pictures
import pytest
import torch
import wire
from drivers import Kind, connected

import deeplab_client
from benchmarks import toy
from deeplab_client import InvalidImageError, SegmentationError, ServerInfo, voc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from drivers import Driver
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

TIMEOUT = 120.0


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=["grpc", "http"])
def client(color_server: TritonProcess, request: pytest.FixtureRequest, kind: Kind) -> Iterator[Driver]:
    address = {"grpc": color_server.grpc_url, "http": color_server.http_url}[request.param]
    with connected(kind, f"{request.param}://{address}", timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(params=["segment_resnet50", "segment_resnet101"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def raw_mask(server: TritonProcess, data: bytes, model: str = "segment_resnet50") -> npt.NDArray[Any]:
    return wire.infer(server, "grpc", model, {"IMAGE": wire.images(data)}, ["MASK"])["MASK"][0]


@functools.cache
def large_picture() -> bytes:
    """Return a picture that takes the server a few tenths of a second."""
    return pictures.jpeg((6000, 4000))


def test_a_server_lists_its_models(client: Driver) -> None:
    """Of the loaded models, the two segmentation models; no picture is sent."""
    models = {model.name: model for model in client.models()}
    assert set(models) == {"segment_resnet50", "segment_resnet101"}
    model = models["segment_resnet50"]
    assert model.class_names == voc.CLASS_NAMES
    assert (model.version, model.weights, model.precision) == ("1", "none", "fp32")
    assert model.background
    assert model.confidence
    assert (model.max_pixels, model.resize_mode) == (50_000_000, "fixed")
    assert model.resize_size is not None
    assert client.server() == ServerInfo("triton", "2.51.0")


def test_a_view_names_its_requests(client: Driver) -> None:
    """Triton replies with the given id, and accepts unknown headers."""
    view = client.with_options(request_id="order/4711:[a]", headers={"x-tenant": "maps"})
    assert view.segment(pictures.small()).request_id == "order/4711:[a]"
    results = view.segment_many([pictures.small()] * 3)
    assert [None if isinstance(each, SegmentationError) else each.request_id for each in results] == [
        f"order/4711:[a]-{number}" for number in (1, 2, 3)
    ]
    with pytest.raises(InvalidImageError) as caught:
        view.segment(b"no picture")
    assert caught.value.request_id == "order/4711:[a]"
    assert "4711" not in caught.value.message


@pytest.mark.parametrize(("scheme", "kind"), [("grpc", "sync"), ("http", "async")])
def test_every_form_of_a_picture_gives_the_same_mask(
    color_server: TritonProcess, scheme: str, kind: Kind, tmp_path: Path
) -> None:
    expected = raw_mask(color_server, pictures.small())
    image = pictures.cat()
    (tmp_path / "cat.png").write_bytes(pictures.small())
    forms = {
        "path": tmp_path / "cat.png",
        "string": str(tmp_path / "cat.png"),
        "bytes": pictures.small(),
        "PIL image": image,
        "file object": io.BytesIO(pictures.small()),
        "array": np.asarray(image),
        "floats": np.asarray(image) / np.float32(255),
        "tensor": torch.from_numpy(np.array(image)),
        "array with alpha": np.dstack([np.asarray(image), np.zeros((300, 451), np.uint8)]),
    }
    address = color_server.grpc_url if scheme == "grpc" else color_server.http_url
    with connected(kind, f"{scheme}://{address}", timeout=TIMEOUT) as client:
        for form, picture in forms.items():
            np.testing.assert_array_equal(client.segment(picture).mask, expected, err_msg=form)


def test_a_result_has_the_models_mask_and_description(color_server: TritonProcess, client: Driver, model: str) -> None:
    result = client.segment(pictures.CAT, model=model)
    np.testing.assert_array_equal(result.mask, raw_mask(color_server, pictures.small(), model))
    assert (result.model_name, result.model_version) == (model, "1")
    assert result.weights == "none"
    assert result.untrained
    assert "UNTRAINED" in repr(result)
    assert result.class_names[15] == "person"
    assert result.mask.shape == (300, 451)
    assert result.mask.flags.writeable
    assert sum(result.pixel_counts.values()) == 300 * 451
    counts = {name: int((result.mask == index).sum()) for index, name in enumerate(result.class_names)}
    assert result.pixel_counts == {name: count for name, count in counts.items() if count}
    foreground = {name: count for name, count in result.pixel_counts.items() if name != "__background__"}
    assert result.top_class == max(foreground, key=lambda name: foreground[name])
    assert result.timings is not None
    assert result.timings.wait > result.timings.decode > 0


def test_tiles_make_the_mask_that_the_whole_picture_has_away_from_edges(client: Driver) -> None:
    """Large areas of one color, so that only where two meet the smaller tiles see more."""
    blocks = toy.COLORS[np.random.default_rng(0).permutation(21)[:20].reshape(4, 5)]
    picture = blocks.repeat(300, axis=0).repeat(300, axis=1)[:1153, :1431]
    whole = client.segment(picture, confidence=True)
    joined = client.segment_tiles(picture, tile=520, overlap=0.25, confidence=True)
    rows, columns = (np.abs((np.arange(n) + 150) % 300 - 150) > 24 for n in picture.shape[:2])
    inside = np.ix_(rows, columns)
    np.testing.assert_array_equal(joined.mask[inside], whole.mask[inside])
    classes = (picture[:, :, np.newaxis] == toy.COLORS).all(3).argmax(2)
    np.testing.assert_array_equal(joined.mask[inside], classes[inside])
    assert joined.confidence is not None
    assert whole.confidence is not None
    assert (joined.confidence >= 128).mean() > (whole.confidence >= 128).mean()
    assert (joined.model_name, joined.weights) == ("segment_resnet50", "none")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_format_in_which_a_mask_travels_does_not_change_it(
    color_server: TritonProcess, kind: Kind, scheme: str
) -> None:
    address = color_server.grpc_url if scheme == "grpc" else color_server.http_url
    expected = raw_mask(color_server, pictures.small())
    # A PIL image is sent as pixels, which are compressed.
    for picture, options in (
        (pictures.small(), {"mask_format": "png"}),
        (pictures.cat(), {"mask_format": "raw", "compression": "gzip"}),
    ):
        with connected(kind, f"{scheme}://{address}", timeout=TIMEOUT, **options) as client:
            np.testing.assert_array_equal(client.segment(picture).mask, expected)


@pytest.mark.parametrize("output", ["MASK", "MASK_PNG"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_reply_has_the_id_of_its_picture(toy_server: TritonProcess, protocol: Any, output: str) -> None:  # noqa: ANN401 - a literal
    encoded = [toy.picture(number).ppm() for number in range(8)]
    checksums = [zlib.crc32(data) for data in encoded]
    assert max(checksums) > 2**31, "the tensor is signed, and a checksum is not"
    for data, checksum in zip(encoded, checksums, strict=True):
        inputs = {"IMAGE": wire.images(data)}
        reply = wire.infer(toy_server, protocol, "segment_resnet50", inputs, [output, "IMAGE_ID"])
        assert reply["IMAGE_ID"].tolist() == [[checksum]]


@pytest.mark.parametrize("mask_format", ["raw", "png"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_every_picture_gets_its_own_mask(toy_server: TritonProcess, kind: Kind, scheme: str, mask_format: str) -> None:
    address = toy_server.grpc_url if scheme == "grpc" else toy_server.http_url
    sent = [toy.picture(number) for number in range(60)]
    with connected(kind, f"{scheme}://{address}", timeout=TIMEOUT, mask_format=mask_format, retries=0) as client:
        results = client.segment_many([picture.pixels() for picture in sent], concurrency=8)
        for picture, result in zip(sent, results, strict=True):
            assert isinstance(result, deeplab_client.Segmentation), result
            assert picture.is_mask(result.mask)


def test_an_exif_rotated_picture_and_its_overlay_stand_upright(client: Driver) -> None:
    data = pictures.exif_rotated()
    result = client.segment(data)
    assert result.mask.shape == (800, 533)
    assert result.overlay(data).width == 533


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not an image", "cannot be opened as an image"),
        (pictures.landscape()[:30_000], "JPEG image is broken or truncated"),
        (pictures.png_header(60_000, 60_000), "limit is 50000000"),
    ],
    ids=["empty", "text", "truncated", "bomb"],
)
def test_a_refused_picture_is_an_invalid_image(client: Driver, data: bytes, message: str) -> None:
    with pytest.raises(deeplab_client.InvalidImageError, match=message) as caught:
        client.segment(data)
    assert isinstance(caught.value, ValueError)
    assert "in ensemble" not in str(caught.value)


def test_a_picture_above_the_servers_limit_is_not_sent(client: Driver) -> None:
    with pytest.raises(
        deeplab_client.InvalidImageError, match="but 'segment_resnet50' takes at most 50000000: use segment_tiles"
    ):
        client.segment(np.zeros((7072, 7072), np.uint8))


def test_an_unknown_model_is_not_found(client: Driver) -> None:
    with pytest.raises(deeplab_client.ModelNotFoundError, match="segment_vgg"):
        client.segment(pictures.small(), model="segment_vgg")
    assert not client.is_ready(model="segment_vgg")
    assert client.is_ready()


def test_a_model_that_does_not_segment_is_a_model_error(client: Driver) -> None:
    with pytest.raises(deeplab_client.ModelError):
        client.segment(pictures.small(), model="encode_mask")


def test_a_deadline_is_kept_and_does_not_affect_the_next_call(client: Driver) -> None:
    client.segment(pictures.small())
    with pytest.raises(deeplab_client.DeadlineExceededError, match=r"0\.05"):
        client.segment(large_picture(), timeout=0.05)
    assert client.segment(pictures.small()).mask.shape == (300, 451)


def test_an_absent_server_is_unavailable(kind: Kind) -> None:
    for scheme in ("grpc", "http"):
        with connected(kind, f"{scheme}://127.0.0.1:1", timeout=5) as absent:
            assert not absent.is_ready()
            with pytest.raises(deeplab_client.ServerUnavailableError):
                absent.segment(pictures.small())
