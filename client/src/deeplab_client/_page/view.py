"""The parts of the page that show a result, and its downloads."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deeplab_client._drawing import palette_of
from deeplab_client._image import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client import Segmentation, SegmentationClient

_LONGEST_PREVIEW = 1280  # pixels of a side; Gradio creates one picture of this size for each class
_UNTRAINED = "UNTRAINED WEIGHTS: the colors are noise, not a segmentation."


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A picture and its result, which the page keeps for one browser tab until the next picture.

    Threshold and opacity are applied to it, so changing them sends nothing to the server.

    Attributes:
        name: The picture's file name.
        picture: The encoded picture that was sent.
        preview: The picture, upright, at most 1280 pixels wide and high.
        result: The result, with a confidence.
    """

    name: str
    picture: bytes
    preview: Image.Image
    result: Segmentation

    def at_least(self, threshold: float) -> Segmentation:
        """Return the result with less certain pixels set to background, if the model has one."""
        return self.result.at_least(threshold) if self.result.background else self.result


def ask(client: SegmentationClient, path: str, model: str) -> Answer:
    """Segment a picture.

    Raises:
        SegmentationError: The request failed.
    """
    picture = Path(path).read_bytes()
    result = client.segment(picture, model=model, confidence=True)
    preview = decode(picture)
    preview.thumbnail((_LONGEST_PREVIEW, _LONGEST_PREVIEW))
    return Answer(Path(path).name, picture, preview, result)


def layers(result: Segmentation, size: tuple[int, int], opacity: float) -> list[tuple[NDArray[np.float64], str]]:
    """Return the opacity of each present class in each pixel, and its name, without the background.

    Args:
        result: The result to show.
        size: Width and height of the preview.
        opacity: 0 to 1.
    """
    small = replace(result, mask=np.asarray(Image.fromarray(result.mask).resize(size, Image.Resampling.NEAREST)))
    names = [name for name in result.pixel_counts if not (result.background and name == result.class_names[0])]
    return [(np.where(small[name], opacity, 0.0), name) for name in names]


def colors(result: Segmentation) -> dict[str, str]:
    """Return the color of each class as `#rrggbb`."""
    rows = palette_of(background=result.background)[: len(result.class_names)].tolist()
    named = zip(result.class_names, rows, strict=True)
    return {name: "#{:02x}{:02x}{:02x}".format(*row) for name, row in named}


def table(result: Segmentation) -> str:
    """Return an HTML table of the present classes with their share and pixels, largest first."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{share:.1%}</td><td>{result.pixel_counts[name]:,}</td></tr>"
        for name, share in result.fractions.items()
    )
    return (
        '<table class="classes"><caption>Classes</caption>'
        f"<thead><tr><th>class</th><th>share</th><th>pixels</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def caption(result: Segmentation) -> str:
    """Return HTML that describes the result and its model, with an alert for untrained weights."""
    height, width = result.mask.shape
    found = "background only" if result.top_class is None else f"mostly {result.top_class}"
    model = f"{result.model_name}/{result.model_version}, weights {result.weights or 'unknown'}"
    text = f"<p>{html.escape(f'{width} x {height} pixels, {found}. {model}.')}</p>"
    return f"{alert(_UNTRAINED)}{text}" if result.untrained else text


def alert(message: str) -> str:
    """Return red HTML that a screen reader announces at once."""
    return f'<p role="alert" class="alert">{html.escape(message)}</p>'


def files(answer: Answer, threshold: float, opacity: float) -> list[tuple[str, bytes]]:
    """Return name and content of the downloads: the overlay, the class ids and the description.

    The pictures have the full size of the original.
    """
    result = answer.at_least(threshold)
    overlay = BytesIO()
    result.overlay(answer.picture, alpha=opacity).save(overlay, "PNG", compress_level=1)
    return [
        (f"{answer.name}.overlay.png", overlay.getvalue()),
        (f"{answer.name}.ids.png", result.to_png()),
        (f"{answer.name}.json", json.dumps(result.to_dict(), indent=2).encode()),
    ]
