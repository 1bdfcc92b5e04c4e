"""The picture that all requests send."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(size: tuple[int, int]) -> bytes:
    """Return a JPEG of a width and height: blobs, as smooth as a photograph, and a little noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = (smooth + generator.integers(-6, 7, smooth.shape, np.int16)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
