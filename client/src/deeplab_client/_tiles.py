"""A large picture as overlapping tiles, and the result joined from theirs."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_client import _steps
from deeplab_client._errors import DeadlineExceededError, ModelError, SegmentationError
from deeplab_client._image import upright
from deeplab_client._segmentation import Timings
from deeplab_client._steps import Done, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from deeplab_client._calls import Calls
    from deeplab_client._deadline import Deadline
    from deeplab_client._image import ImageLike
    from deeplab_client._segmentation import Segmentation
    from deeplab_client._steps import Steps

_SMALLEST_TILE = 64  # pixels; the server would enlarge a smaller tile more than eight times


def check_tiling(tile: object, overlap: object) -> tuple[int, float]:
    """Return the checked side of a tile in pixels, and the share of it that its neighbor also covers.

    Raises:
        TypeError: `tile` is not an integer, or `overlap` is not a number.
        ValueError: One of them is out of range.
    """
    if isinstance(tile, bool) or not isinstance(tile, int):
        raise TypeError(f"tile must be an integer number of pixels, got {tile!r}")
    if tile < _SMALLEST_TILE:
        raise ValueError(f"tile must be {_SMALLEST_TILE} pixels or more, got {tile}")
    if isinstance(overlap, bool) or not isinstance(overlap, Real):
        raise TypeError(f"overlap must be a number, got {overlap!r}")
    if not 0 <= float(overlap) < 1:
        raise ValueError(f"overlap must be at least 0 and less than 1, got {overlap!r}")
    return tile, float(overlap)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A rectangle of a picture; an image whose pixels are copied when it is read.

    Attributes:
        picture: The whole picture.
        x: The first column.
        y: The first row.
        width: Width in pixels.
        height: Height in pixels.
    """

    picture: NDArray[np.uint8] | Image.Image
    x: int
    y: int
    width: int
    height: int

    def __array__(self, *_args: Any, **_options: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - a protocol of numpy's
        if isinstance(self.picture, np.ndarray):
            return self.picture[self.y : self.y + self.height, self.x : self.x + self.width]
        return np.asarray(self.picture.crop((self.x, self.y, self.x + self.width, self.y + self.height)))

    def __str__(self) -> str:
        return f"tile x={self.x}, y={self.y}, width={self.width}, height={self.height}"


def cut(
    calls: Calls,
    image: ImageLike,
    model: str | None,
    deadline: Deadline,
    *,
    tile: int,
    overlap: float,
    confidence: bool,
) -> Steps[Mosaic]:
    """Read an image and decide on its tiles."""
    tile, overlap = check_tiling(tile, overlap)
    model = calls.model_or_own(model)
    calls.check_open()
    start = time.perf_counter()
    # Without an argument, because an async client handles a small one in the event loop, and a small file can have many
    # pixels.
    picture = yield Work(lambda _: upright(image), None, deadline)
    yield Done(Mosaic(calls, picture, model, deadline, tile=tile, overlap=overlap, confidence=confidence, start=start))


class Mosaic:
    """The tiles of one picture, and its mask so far.

    It holds the picture, its mask and its confidence: 5 or 6 bytes a pixel.
    """

    def __init__(
        self,
        calls: Calls,
        picture: NDArray[np.uint8] | Image.Image,
        model: str,
        deadline: Deadline,
        *,
        tile: int,
        overlap: float,
        confidence: bool,
        start: float,
    ) -> None:
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
        self._calls = calls
        self._picture = picture
        self._model = model
        self._deadline = deadline
        self._size = min(tile, width), min(tile, height)
        step = max(1, tile - round(tile * overlap))
        self._columns, self._rows = _starts(width, tile, step), _starts(height, tile, step)
        self._count = len(self._columns) * len(self._rows)
        self._done = 0  # tiles that are joined
        self._request_id = calls.request_id()
        self._keep_confidence = confidence
        self._mask = np.empty((height, width), np.uint8)
        # 0, so that any pixel of a tile is at least as certain as a pixel without a tile.
        has_confidence = confidence or self._count > 1
        self._confidence = np.zeros((height, width), np.uint8) if has_confidence else None
        self._about: Segmentation | None = None  # a result without its arrays
        self._start, self._opened = start, time.perf_counter()
        self._joining = 0.0

    def tiles(self) -> Iterator[Tile]:
        """Return the tiles row by row."""
        return map(self._tile, range(self._count))

    def segment(self, tile: ImageLike, number: int, deadline: Deadline) -> Steps[Segmentation]:
        """Segment one tile; numbers start at 1."""
        return _steps.segment(
            self._calls,
            tile,
            self._model,
            deadline,
            confidence=self._confidence is not None,
            in_batch=True,
            request_id=self._request_id if self._count == 1 else f"{self._request_id}-{number}",
        )

    def join(self, result: Segmentation | SegmentationError) -> Steps[None]:
        """Add the result of the next tile, in the order of the tiles.

        Raises:
            SegmentationError: It is an error, or is from another model than the previous results.
        """
        tile = self._tile(self._done)
        if isinstance(result, SegmentationError):
            # A copy, because the frames in the traceback hold the original error, which would keep the picture alive.
            raise self._named(result, tile) from result
        yield Work(lambda _: self._add(tile, result), None, self._deadline)
        self._done += 1
        yield Done(None)

    def result(self) -> Segmentation:
        """Return the joined result; call this once, after all tiles."""
        assert self._about is not None  # noqa: S101 - a picture has at least one tile
        wait = time.perf_counter() - self._opened - self._joining
        return replace(
            self._about,
            mask=self._mask,
            confidence=self._confidence if self._keep_confidence else None,
            request_id=self._request_id,
            timings=Timings(encode=self._opened - self._start, wait=wait, decode=self._joining),
        )

    def _tile(self, index: int) -> Tile:
        row, column = divmod(index, len(self._columns))
        return Tile(self._picture, self._columns[column], self._rows[row], *self._size)

    def _named(self, error: SegmentationError, tile: Tile) -> SegmentationError:
        """Return a copy of an error whose message names the tile, if there are several tiles."""
        named = copy(error)
        if self._count > 1:
            named.message = f"{tile}: {named.message}"
            if isinstance(error, DeadlineExceededError):
                named.message += f"; {self._done} of {self._count} tiles were done"
        return named

    def _add(self, tile: Tile, result: Segmentation) -> None:
        begun = time.perf_counter()
        about = replace(result, mask=np.empty((0, 0), np.uint8), confidence=None)
        if self._about is None:
            self._about = about
        if about != self._about:
            versions = f"versions {self._about.model_version} and {about.model_version}"
            message = f"{about.model_name!r} changed between two tiles ({versions}): segment the picture again"
            changed = ModelError(message, model=about.model_name, request_id=about.request_id)
            changed.retryable = True
            raise changed
        area = slice(tile.y, tile.y + tile.height), slice(tile.x, tile.x + tile.width)
        if self._confidence is None or result.confidence is None:
            self._mask[area] = result.mask
        else:
            best = self._confidence[area]
            np.copyto(self._mask[area], result.mask, where=result.confidence >= best)
            np.maximum(best, result.confidence, out=best)
        self._joining += time.perf_counter() - begun


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Return where tiles start along one side; the last one ends with the picture."""
    last = max(0, length - tile)
    return [*range(0, last, step), last]
