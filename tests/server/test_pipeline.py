"""Encoded pictures in, masks out, against torchvision in eager mode and Pillow.

The real network answers where its arithmetic matters. Elsewhere a toy that tells classes by color answers at once: its
masks have many borders, so that a pixel that is off shows.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pictures
import pytest
import torch
import wire
from eager_models import VARIANTS, eager
from PIL import Image, ImageOps
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from tritonclient.utils import InferenceServerException
from wire import PROTOCOLS

from benchmarks import toy
from deeplabv3 import server_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

PICTURES = (pictures.landscape, pictures.portrait, pictures.exif_rotated, pictures.small)
OUTPUTS = ("MASK", "CLASS_PIXELS", "CLASS_NAMES", "MASK_PNG", "CONFIDENCE", "IMAGE_ID")


@functools.cache
def by_color() -> toy.ByColor:
    return toy.ByColor().eval()


def core_logits(network: str, samples: torch.Tensor) -> torch.Tensor:
    """Return the logits of a picture, (3, H, W) uint8."""
    if network == "toy":
        return by_color()(samples.permute(1, 2, 0)[None], torch.zeros(1, 1))[0]
    model = eager(network)
    normalized = transforms.normalize(samples / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return model.classifier(model.backbone(normalized[None])["out"])


@functools.cache
def reference_mask(data: bytes, resize: str = "torchvision", network: str = "toy") -> npt.NDArray[Any]:
    """Resize to 520 x 520 with Pillow or torchvision, run the network, upsample its logits to the picture's size."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if resize == "pillow":
        # Rows, then columns, as torch does and Pillow did in one call until 13.0, which takes the columns first where
        # that is faster (python-pillow/Pillow#9549) and then rounds one sample in ten the other way.
        rows = image.resize((520, image.height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(rows.resize((520, 520), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    else:
        pixels = transforms.resize(torch.from_numpy(np.array(image)).permute(2, 0, 1), [520, 520], antialias=True)
    with torch.inference_mode():
        logits = core_logits(network, pixels)
        upsampled = functional.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=False)
    return upsampled.argmax(1)[0].numpy().astype(np.uint8)


def segment(
    server: TritonProcess, data: bytes, protocol: wire.Protocol = "grpc", variant: str = "resnet50"
) -> dict[str, npt.NDArray[Any]]:
    return wire.infer(server, protocol, f"segment_{variant}", {"IMAGE": wire.images(data)}, OUTPUTS)


def check(reply: dict[str, npt.NDArray[Any]], data: bytes, network: str = "toy") -> None:
    """Hold all that a reply says against what eager PyTorch makes of the picture."""
    mask = reply["MASK"][0]
    for resize, agreement in {"pillow": 0.999, "torchvision": 0.9999}.items():
        expected = reference_mask(data, resize, network)
        assert mask.shape == expected.shape
        assert mask.dtype == np.uint8
        assert (mask == expected).mean() >= agreement, resize
    assert reply["CLASS_PIXELS"][0].tolist() == np.bincount(mask.ravel(), minlength=21).tolist()
    names = [name.decode() for name in reply["CLASS_NAMES"][0]]
    assert names[0] == "__background__"
    assert (names[8], names[15], len(names)) == ("cat", "person", 21)
    assert reply["IMAGE_ID"].tolist() == [[zlib.crc32(data)]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_those_of_eager_torchvision(server: TritonProcess, variant: str, protocol: wire.Protocol) -> None:
    check(segment(server, pictures.landscape(), protocol, variant), pictures.landscape(), variant)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_have_the_borders_of_the_picture(
    color_server: TritonProcess, variant: str, protocol: wire.Protocol, picture: Callable[[], bytes]
) -> None:
    check(segment(color_server, picture(), protocol, variant), picture())
    assert len(np.unique(reference_mask(picture()))) >= 4, "the test needs a picture of several classes"


def test_a_picture_of_520_x_520_gives_the_models_own_argmax(server: TritonProcess) -> None:
    image = pictures.cat((520, 520))
    mask = segment(server, pictures.encoded(image, "PNG"))["MASK"][0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    normalized = transforms.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = eager("resnet50")(normalized)["out"].argmax(1)[0].numpy()
    assert (mask == expected).mean() >= 0.9999


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mask_png_holds_the_mask_in_voc_colors(color_server: TritonProcess, protocol: wire.Protocol) -> None:
    reply = segment(color_server, pictures.portrait(), protocol)
    with Image.open(io.BytesIO(reply["MASK_PNG"][0][0])) as png:
        assert png.mode == "P"
        np.testing.assert_array_equal(np.asarray(png), reply["MASK"][0])
        palette = np.array(png.getpalette()).reshape(-1, 3)
    # Colors as the Pascal VOC devkit lists them.
    assert palette[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert palette[15].tolist() == [192, 128, 128]
    assert palette[20].tolist() == [0, 64, 128]


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (pictures.gray_png, (451, 300)),
        (pictures.palette_png, (451, 300)),
        (pictures.rgba_png, (451, 300)),
        (pictures.cmyk_jpeg, (451, 300)),
        (pictures.bmp, (451, 300)),
        (pictures.ppm, (451, 300)),
        (lambda: pictures.encoded(pictures.cat().quantize(64), "GIF"), (451, 300)),
        (lambda: pictures.encoded(pictures.cat(), "TIFF", compression="tiff_lzw"), (451, 300)),
        (lambda: pictures.encoded(pictures.cat(), "AVIF"), (451, 300)),
        (lambda: pictures.encoded(pictures.cat((1, 1)), "PNG"), (1, 1)),
        (lambda: pictures.encoded(pictures.cat((1, 4000)), "PNG"), (1, 4000)),
        (lambda: pictures.encoded(pictures.cat((4000, 1)), "PNG"), (4000, 1)),
    ],
    ids=["gray", "palette", "rgba", "cmyk", "bmp", "ppm", "gif", "tiff", "avif", "1x1", "1x4000", "4000x1"],
)
def test_unusual_pictures_are_segmented_right(
    color_server: TritonProcess, make: Callable[[], bytes], size: tuple[int, int]
) -> None:
    data = make()
    mask = segment(color_server, data)["MASK"][0]
    assert mask.shape == size[::-1]
    assert (mask == reference_mask(data)).mean() >= 0.9999


def test_sixteen_bit_and_animated_pictures_are_segmented_right(color_server: TritonProcess) -> None:
    data, samples = pictures.sixteen_bit_png()
    eight_bit = pictures.encoded(Image.fromarray((samples >> 8).astype(np.uint8)), "PNG")
    mask = segment(color_server, data)["MASK"][0]
    assert (mask == reference_mask(eight_bit)).mean() >= 0.9999
    mask = segment(color_server, pictures.animated_webp())["MASK"][0]
    assert (mask == reference_mask(pictures.small())).mean() >= 0.9999


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "random": (os.urandom(4096), "cannot be opened as an image"),
    "truncated": (pictures.landscape()[:40_000], "JPEG image is broken or truncated"),
    "gif-bomb": (pictures.gif_bomb(), "cannot be opened as an image"),
    "png-bomb": (pictures.png_header(60_000, 60_000), "60000 x 60000 = 3600000000 pixels, but the limit is 50000000"),
    "unsupported": (pictures.encoded(pictures.cat(), "JPEG2000"), "a JPEG 2000 picture; convert it to JPEG, PNG, WebP"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_no_picture_is_the_callers_fault(
    color_server: TritonProcess, protocol: wire.Protocol, case: str
) -> None:
    data, message = REFUSED[case]
    with pytest.raises(InferenceServerException, match=message) as caught:
        segment(color_server, data, protocol)
    assert caught.value.status() == {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_images_of_different_size_are_refused(color_server: TritonProcess, protocol: wire.Protocol) -> None:
    both = wire.images(pictures.small(), pictures.portrait())
    with pytest.raises(InferenceServerException, match="the same size, got 451x300, 600x900") as caught:
        wire.infer(color_server, protocol, "segment_resnet50", {"IMAGE": both}, ["MASK"])
    assert caught.value.status() == {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[protocol]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_choice_of_outputs_is_answered(color_server: TritonProcess, count: int) -> None:
    """Triton leaves out the steps that a choice does not need; the rest must still run, and errors keep their words."""
    whole = segment(color_server, pictures.small())
    for chosen in itertools.combinations(OUTPUTS, count):
        part = wire.infer(color_server, "grpc", "segment_resnet50", {"IMAGE": wire.images(pictures.small())}, chosen)
        for name in chosen:
            np.testing.assert_array_equal(part[name], whole[name])
        with pytest.raises(InferenceServerException, match="the image is empty"):
            wire.infer(color_server, "grpc", "segment_resnet50", {"IMAGE": wire.images(b"")}, chosen)


@pytest.mark.parametrize(
    ("outputs", "runs"),
    [
        (["MASK", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID"], ["postprocess"]),
        (["MASK_PNG"], ["postprocess", "encode_mask"]),
        (["CONFIDENCE"], ["confidence"]),
        (["MASK", "CONFIDENCE"], ["postprocess", "confidence"]),
        (["MASK_PNG", "CONFIDENCE"], ["postprocess", "encode_mask", "confidence"]),
    ],
    ids=",".join,
)
def test_a_step_runs_only_for_those_who_ask(color_server: TritonProcess, outputs: list[str], runs: list[str]) -> None:
    steps = ("postprocess", "encode_mask", "confidence")

    def executed() -> dict[str, int]:
        found = server_statistics.read(color_server.grpc_url)
        return {step: found[step]["inferences"] for step in steps}

    before = executed()
    wire.infer(color_server, "grpc", "segment_resnet50", {"IMAGE": wire.images(pictures.small())}, outputs)
    assert executed() == {step: before[step] + (step in runs) for step in steps}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_confidence_refuses_what_fits_no_picture(color_server: TritonProcess, protocol: wire.Protocol) -> None:
    tensors = {"LOGITS": np.zeros((1, 21, 4, 4), np.float32), "SIZE": np.array([[50_000, 50_000]], np.int32)}
    with pytest.raises(InferenceServerException, match=r"SIZE is 50000 x 50000.*at most 50000000") as caught:
        wire.infer(color_server, protocol, "confidence", tensors, ["CONFIDENCE"])
    assert caught.value.status() == {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[protocol]
    tensors["SIZE"] = np.array([[5, 7]], np.int32)
    found = wire.infer(color_server, protocol, "confidence", tensors, ["CONFIDENCE"])["CONFIDENCE"]
    np.testing.assert_array_equal(found, np.full((1, 5, 7), round(255 / 21), np.uint8))


def test_two_images_of_one_size_share_a_request(color_server: TritonProcess) -> None:
    flipped = pictures.encoded(ImageOps.mirror(pictures.cat()), "PNG")
    reply = wire.infer(
        color_server, "grpc", "segment_resnet50", {"IMAGE": wire.images(pictures.small(), flipped)}, OUTPUTS
    )
    assert reply["IMAGE_ID"].tolist() == [[zlib.crc32(pictures.small())], [zlib.crc32(flipped)]]
    for index, data in enumerate((pictures.small(), flipped)):
        expected = reference_mask(data)
        assert (reply["MASK"][index] == expected).mean() >= 0.9999
        assert reply["CLASS_PIXELS"][index].sum() == expected.size
        with Image.open(io.BytesIO(reply["MASK_PNG"][index][0])) as png:
            np.testing.assert_array_equal(np.asarray(png), reply["MASK"][index])


def test_a_broken_picture_costs_its_batch_mates_nothing(color_server: TritonProcess) -> None:
    """Sixteen callers at once, every fourth with garbage: twelve right masks, four errors, batches in between."""
    good = [pictures.small(), pictures.portrait(), pictures.landscape()]
    before = server_statistics.read(color_server.grpc_url)
    barrier = threading.Barrier(16)

    def call(index: int) -> npt.NDArray[Any] | InferenceServerException:
        data = REFUSED["truncated"][0] if index % 4 == 3 else good[index % 4]
        barrier.wait()
        try:
            return segment(color_server, data)["MASK"][0]
        except InferenceServerException as exc:
            return exc

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(call, range(16)))
    for index, reply in enumerate(replies):
        if index % 4 == 3:
            assert isinstance(reply, InferenceServerException)
            assert reply.status() == "StatusCode.INVALID_ARGUMENT"
        else:
            assert isinstance(reply, np.ndarray)
            assert (reply == reference_mask(good[index % 4])).mean() >= 0.9999
    counts = (server_statistics.between(before, server_statistics.read(color_server.grpc_url)) or {})["preprocess"]
    assert counts["inferences"] == 16
    assert counts["executions"] < 16, "preprocess ran every request by itself: nothing was batched"


def test_a_photograph_of_40_megapixels_takes_bounded_memory(color_server: TritonProcess) -> None:
    """docs/serving.md, "Memory": the figures are these bounds, in MB."""
    # The mask once in the process and twice in shared memory, 40 MB each, and the working set; the decoded image, its
    # copies, and what decodes it.
    bounds = {"postprocess": 3 * 40 + 100, "preprocess": 10 * 40}
    data = pictures.encoded(pictures.cat((8000, 5000)), "PNG", compress_level=1)
    stubs = {stub: step for stub in color_server.stubs for step in bounds if f"/{step}/" in " ".join(stub.cmdline())}
    assert len(stubs) == 4
    before = {stub: _peak_resident_bytes(stub.pid, reset=True) for stub in stubs}
    reply = wire.infer(color_server, "grpc", "segment_resnet50", {"IMAGE": wire.images(data)}, ["MASK", "CLASS_PIXELS"])
    assert reply["MASK"].shape == (1, 5000, 8000)
    assert reply["CLASS_PIXELS"].sum() == 40_000_000
    assert (reply["MASK"][0] == reference_mask(data)).mean() >= 0.9999
    grown = dict.fromkeys(bounds, 0)
    for stub, step in stubs.items():
        grown[step] = max(grown[step], _peak_resident_bytes(stub.pid) - before[stub])
    for step, megabytes in bounds.items():
        print(f"{step}: peak memory grew by {grown[step] / 1e6:.0f} MB, the bound is {megabytes} MB")  # noqa: T201
        assert 0 < grown[step] < megabytes * 1_000_000


def test_a_large_jpeg_has_the_mask_of_the_whole_picture(color_server: TritonProcess) -> None:
    """It is decoded at 1/8 of its size; with 4 x 4 logits a step of 255 in a sample changes one pixel of a thousand."""
    data = pictures.jpeg((1283, 853), orientation=6)
    reply = segment(color_server, data)
    expected = reference_mask(data)
    assert reply["MASK"][0].shape == (1283, 853)
    assert (reply["MASK"][0] == expected).mean() > 0.99


def _peak_resident_bytes(pid: int, *, reset: bool = False) -> int:
    """Return the peak resident size of a process; `reset` starts a new peak from now on (proc(5), clear_refs)."""
    if reset:
        with open(f"/proc/{pid}/clear_refs", "w") as file:  # noqa: PTH123 - not a file of ours
            file.write("5")
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_the_server_is_well_after_all_that(color_server: TritonProcess) -> None:
    with wire.connected(color_server, "grpc") as client:
        assert client.is_server_ready()
        for model in ("preprocess", "postprocess", "encode_mask", "confidence", "core_resnet50", "segment_resnet101"):
            assert client.is_model_ready(model)
    assert all(stub.is_running() for stub in color_server.stubs)
    mask = segment(color_server, pictures.small(), "http")["MASK"][0]
    assert (mask == reference_mask(pictures.small())).mean() >= 0.9999
