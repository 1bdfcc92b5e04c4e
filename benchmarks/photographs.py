"""Measure what decoding large JPEGs at a fraction of their size saves, and how it changes pixels and masks.

    .venv/bin/python -m benchmarks.photographs [time] [masks] [--count 30] [--weights none] [--rounds 5]
        [--output out/bench]

`time` measures `preprocess` in one thread, in turns with the setting `scaled_decoding` on and off. `masks` makes large
photographs from two small ones and compares the pixels and masks of both settings. The masks come from a stand-in that
classifies by color, and from a ResNet-50. The logits of untrained weights hardly differ between classes, so that the
smallest change of a pixel can change the mask. As a reference, the changes are also reported for resizing with Pillow
instead of torch. The results are printed and written to photographs.json; with one part, to photographs-time.json or
photographs-masks.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import io
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms.functional import normalize

from benchmarks import harness, toy
from benchmarks.harness import PHOTOGRAPH, ROOT, cores
from benchmarks.report import Column, Report
from deeplabv3 import UNTRAINED, WeightsSource
from deeplabv3.arguments import number
from deeplabv3.building.tracing import TRAINED_SIZE
from deeplabv3.embedded.layout import TUNING
from deeplabv3.models.variants import PUBLISHED_WEIGHTS, load_model
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import numpy.typing as npt

# As in Triton: each module is in its model's folder.
sys.path[:0] = [str(ROOT / "model_repository" / name / "1") for name in ("preprocess", "postprocess")]

import image_bytes  # noqa: E402 - needs the line above
import image_decoding  # noqa: E402 - likewise
import image_ops  # noqa: E402 - likewise
import image_resizing  # noqa: E402 - likewise
import mask_ops  # noqa: E402 - likewise

WHOLE, FRACTION, PILLOW = "as a whole", "at a fraction", "as a whole, Pillow's resize"
COLORS, NETWORK = "by color", "ResNet-50"
SIZE = (TRAINED_SIZE, TRAINED_SIZE)
TWELVE_MEGAPIXELS = (4000, 3000)
# Width and height as stored: phones, cameras, a video frame, and a crop.
SIZES = ((4000, 3000), (4032, 3024), (3000, 4000), (5184, 3456), (6000, 4000), (3264, 2448), (4001, 2999), (2160, 3840))
SUBSAMPLINGS = ("4:4:4", "4:2:0", "4:2:0")
ORIENTATION_TAG = 0x0112


class Photographs:
    """Large JPEGs made from two small photographs, of a cat and a person."""

    def __init__(self) -> None:
        person = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
        self._sources = [Image.open(file).convert("RGB") for file in (PHOTOGRAPH, person)]

    def jpeg(self, seed: int) -> bytes:
        """Return a photograph with pasted parts of others, sensor noise, and random camera settings."""
        random = np.random.default_rng(seed)
        width, height = SIZES[seed % len(SIZES)]
        image = self._part(random, (width, height))
        for _ in range(random.integers(2, 6)):
            size = (int(width * random.uniform(0.15, 0.6)), int(height * random.uniform(0.15, 0.6)))
            place = (int(random.integers(0, width - size[0])), int(random.integers(0, height - size[1])))
            shape = Image.new("L", (64, 64))
            ImageDraw.Draw(shape).ellipse((2, 2, 61, 61), fill=255)
            image.paste(self._part(random, size), place, shape.filter(ImageFilter.GaussianBlur(0.5)).resize(size))
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = int(random.integers(1, 9))
        return encode(
            with_grain(image, random),
            "JPEG",
            quality=int(random.integers(75, 97)),
            subsampling=SUBSAMPLINGS[random.integers(len(SUBSAMPLINGS))],
            progressive=bool(random.random() < 0.2),  # noqa: PLR2004 - one in five
            exif=exif,
        )

    def _part(self, random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
        source = self._sources[random.integers(len(self._sources))]
        width, height = (int(side * random.uniform(0.35, 1)) for side in source.size)
        left, top = random.integers(0, source.width - width + 1), random.integers(0, source.height - height + 1)
        return source.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def with_grain(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return an image with the fine detail that enlarging cannot add: noise at scales of 1, 2, 4 and 8 pixels."""
    samples = np.asarray(image, np.float32)
    for side in (1, 2, 4, 8):
        noise = random.normal(0, 1, (image.height // side + 1, image.width // side + 1)).astype(np.float32)
        grain = Image.fromarray(noise).resize(image.size, Image.Resampling.BICUBIC)
        samples = samples + random.uniform(0.5, 2.5) * np.asarray(grain)[..., np.newaxis]
    return Image.fromarray(samples.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def settings(*, scaled: bool) -> image_ops.Settings:
    """Return the settings of the committed config, with scaled decoding on or off."""
    parameters = read_config(ROOT / "model_repository" / "preprocess" / "config.pbtxt").parameters
    values = {name: value.string_value for name, value in parameters.items()}
    return image_ops.Settings.from_parameters(values | {"scaled_decoding": str(scaled).lower()})


def measure_time(report: Report, rounds: int) -> None:
    """Time preprocess for several pictures; decoding a JPEG takes longer the more bytes it has."""
    plain = Image.open(PHOTOGRAPH).convert("RGB").resize(TWELVE_MEGAPIXELS)
    grainy = with_grain(plain, np.random.default_rng(0))
    pictures = {
        "640 x 480": encode(plain.resize((640, 480)), "JPEG", quality=90),
        "4000 x 3000, smooth": encode(plain, "JPEG", quality=90),
        "4000 x 3000, quality 75": encode(grainy, "JPEG", quality=75),
        "4000 x 3000, quality 90": encode(grainy, "JPEG", quality=90),
        "4000 x 3000, quality 95": encode(grainy, "JPEG", quality=95),
        "4000 x 3000, turned": encode(grainy, "JPEG", quality=90, exif=turned()),
        "6000 x 4000, quality 90": encode(grainy.resize((6000, 4000)), "JPEG", quality=90),
        "8000 x 6000, quality 90": encode(grainy.resize((8000, 6000)), "JPEG", quality=90),
        "4000 x 3000, WebP": encode(grainy, "WEBP", quality=90, method=0),
        "4000 x 3000, PNG": encode(grainy, "PNG", compress_level=1),
        "4000 x 3000, AVIF": encode(grainy, "AVIF", quality=75, speed=10),
    }
    both = {WHOLE: settings(scaled=False), FRACTION: settings(scaled=True)}
    for name, data in pictures.items():
        calls = {contender: partial(image_ops.preprocess, [data], each) for contender, each in both.items()}
        if image_bytes.format_of(data) != "JPEG":
            del calls[FRACTION]  # only JPEGs are decoded at a fraction
        condition = {"picture": name, "KB": len(data) // 1000}
        for contender, found in harness.time_in_turns(calls, rounds=rounds, threads=1, seconds=0.01).items():
            report.add("time", contender, condition, {"seconds": found.times})
    report.compare("time", "seconds", {FRACTION: (WHOLE,)}, high_is_good=False)


def turned() -> Image.Exif:
    """Return the EXIF block of a picture that was taken with the phone held upright."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    return exif


def pixels_of(data: bytes) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """Return PIXELS (3, H, W) uint8 by contender, and height and width of the picture as shown."""
    found: dict[str, torch.Tensor] = {}
    for name, scaled in ((WHOLE, False), (FRACTION, True)):
        step = settings(scaled=scaled)
        resized = step.resized if scaled else None
        picture = image_decoding.decode_for_resize(data, max_pixels=step.max_pixels, resized=resized)
        found[name] = image_resizing.resized_planes(picture, SIZE, max_pixels=step.max_pixels)
        if not scaled:
            theirs = picture.image.resize(SIZE, Image.Resampling.BILINEAR)
            found[PILLOW] = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    return found, picture.size


def measure_masks(report: Report, count: int, weights: str) -> None:
    """Compare pixels and masks of photographs."""
    source = WeightsSource.of(weights)
    network: Any = load_model("resnet50", source)
    preset: Any = PUBLISHED_WEIGHTS["resnet50"].transforms()

    def ask_network(pixels: torch.Tensor) -> torch.Tensor:
        return network.classifier(network.backbone(normalize(pixels, preset.mean, preset.std))["out"])

    models = {COLORS: by_color, f"{NETWORK}, weights: {source.label}": ask_network}
    photographs = Photographs()
    torch.set_num_threads(cores())
    for seed in range(count):
        pixels, size = pixels_of(photographs.jpeg(seed))
        answers = {name: _masks(models, each, size) for name, each in pixels.items()}
        for name in (FRACTION, PILLOW):
            apart = (pixels[name].int() - pixels[WHOLE].int()).abs()
            figures = {"largest": float(apart.max()), "above_2": float(apart.gt(2).double().mean())}
            report.add("pixels", name, {}, figures)
            for model, mask in answers[name].items():
                agreement = float((mask == answers[WHOLE][model]).mean())
                report.add("masks", name, {"model": model}, {"agreement": agreement})
        report.say(f"{seed + 1} of {count}: {size[1]} x {size[0]}")
    for row in (*report.of("pixels"), *report.of("masks")):
        for figure, samples in list(row.samples.items()):
            worst = min(samples) if figure == "agreement" else max(samples)
            row.samples |= {figure: [sum(samples) / len(samples)], f"{figure}, worst": [worst]}


def by_color(pixels: torch.Tensor) -> torch.Tensor:
    """Return logits, at stride 8, that decrease with the distance to the color of a class."""
    small = torch.nn.functional.avg_pool2d(pixels, 8).unsqueeze(1)
    return -((small - torch.from_numpy(toy.COLORS).reshape(1, -1, 3, 1, 1) / 255) ** 2).sum(2)


def _masks(
    models: dict[str, Callable[[torch.Tensor], torch.Tensor]], pixels: torch.Tensor, size: tuple[int, int]
) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the masks of one picture at its own size, by model; the models get (1, 3, H, W) float32 from 0 to 1."""
    found: dict[str, npt.NDArray[np.uint8]] = {}
    for name, model in models.items():
        with torch.inference_mode():
            logits = model(pixels.unsqueeze(0) / 255).numpy()
        masks = mask_ops.postprocess(
            logits, np.array([size], np.int32), class_count=logits.shape[1], max_pixels=size[0] * size[1]
        )
        found[name] = masks.masks[0]
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = harness.parser("benchmarks.photographs", __doc__, rounds=5, parts=("time", "masks"))
    parser.add_argument(
        "--count",
        type=number(1, kind=int),
        default=30,
        metavar="N",
        help="number of photographs for `masks` (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", default=UNTRAINED, metavar="NAME|FILE|none", help="as for build_models.py (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    """Run the command line."""
    options = parse()
    tuned = TUNING | {"OMP_NUM_THREADS": "1"}
    if any(
        os.environ.get(name) != value for name, value in tuned.items()
    ):  # malloc reads them only when a process starts
        os.execve(  # noqa: S606 - the same command
            sys.executable, [sys.executable, "-m", "benchmarks.photographs", *sys.argv[1:]], os.environ | tuned
        )
    # A run of one part must not overwrite the results of the other.
    report = Report("-".join(["photographs", *(options.parts if len(options.parts) == 1 else ())]), options.output)
    if "time" in options.parts:
        measure_time(report, options.rounds)
        report.show("preprocess, one thread", report.of("time"), (Column("seconds", "ms", 1e3, ".1f"),))
    if "masks" in options.parts:
        measure_masks(report, options.count, options.weights)
        columns = (
            Column("largest", "largest difference of 255: mean", form=".1f"),
            Column("largest, worst", "worst", form=".0f"),
            Column("above_2", "samples that differ by more than 2, %: mean", 100, ".4f"),
            Column("above_2, worst", "worst", 100, ".4f"),
        )
        report.show("samples compared with the whole decode and torch's resize", report.of("pixels"), columns)
        columns = (
            Column("agreement", "pixels with the same class, %: mean", 100, ".3f"),
            Column("agreement, worst", "worst", 100, ".3f"),
        )
        report.show("masks compared with the whole decode and torch's resize", report.of("masks"), columns)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
