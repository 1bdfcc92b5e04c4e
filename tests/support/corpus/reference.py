"""Decoders that share no code with Pillow's: imagecodecs wraps libjpeg-turbo, libpng, libtiff and others itself.

A file that states a huge size must not come here: imagecodecs has no limit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

from corpus.case import to_rgb

if TYPE_CHECKING:
    import numpy.typing as npt

    from corpus.case import Pixels, Samples

_codecs: Any = imagecodecs


class RefusedByReferenceError(Exception):
    """The reference does not take the file."""


def _rgb(samples: npt.NDArray[np.unsignedinteger[Any]]) -> Pixels:
    if samples.ndim == 2:
        samples = samples[..., np.newaxis]
    return to_rgb(samples.astype(np.int64), depth=8 * samples.dtype.itemsize)


def _cmyk(inks: Pixels) -> Pixels:
    """Return inks as Adobe stores them, inverted, as RGB."""
    light = inks.astype(np.int64)
    return (light[..., :3] * light[..., 3:] / 255).round().astype(np.uint8)


def _netpbm(data: bytes) -> Pixels:
    """Read a PPM of 8 bits."""
    start = re.match(rb"P6(?:\s|#[^\n]*\n)+(\d+)\s+(\d+)\s+255\s", data)
    if start is None:
        raise RefusedByReferenceError("it is no plain PPM")
    width, height = int(start[1]), int(start[2])
    samples = np.frombuffer(data, np.uint8, offset=start.end())[: 3 * width * height]
    if len(samples) < 3 * width * height:
        raise RefusedByReferenceError("it is too short")
    return samples.reshape(height, width, 3)


def jpeg(samples: Samples, **options: object) -> bytes:
    """Encode what Pillow does not write: `subsampling` "440" and "411", `lossless`, 12 `bitspersample`."""
    depth = np.uint16 if "bitspersample" in options else np.uint8
    return bytes(_codecs.jpeg8_encode(samples.astype(depth), **options))


def decode(kind: str, data: bytes) -> Pixels:
    """Return the pixels of a file of a kind ("jpeg8", "png", "webp", "avif", ...): (H, W, 3), as stored.

    Raises:
        RefusedByReferenceError: With the decoder's own words.
    """
    if kind == "netpbm":
        return _netpbm(data)
    try:
        samples = getattr(_codecs, f"{kind}_decode")(
            data, **({"index": 0} if kind in {"gif", "webp", "tiff", "avif"} else {})
        )
    except Exception as exc:  # each codec has its own errors
        raise RefusedByReferenceError(str(exc)) from exc
    if kind == "avif" and samples.dtype != np.uint8:
        raise RefusedByReferenceError("its samples have the range of 10 or 12 bits")
    if kind == "jpeg8" and samples.ndim == 3 and samples.shape[2] == 4:
        return _cmyk(samples)
    return _rgb(samples)


def encoded(kind: str, samples: Samples) -> bytes:
    """Return 8-bit samples in a format that the product does not take: "jpeg2k", "jpegxl", "jpegls"."""
    return bytes(getattr(_codecs, f"{kind}_encode")(samples.astype(np.uint8)))
