"""The masks that torch makes where the logits are, on the CPU: against torch's own interpolation, and numpy's masks."""

from __future__ import annotations

import logit_tiles
import mask_ops
import mask_ops_cuda
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.build

CPU = torch.device("cpu")


def masks_of(logits: torch.Tensor, height: int, width: int) -> mask_ops.Masks:
    """Return the masks of (N, C, h, w) logits."""
    masker = mask_ops_cuda.Masker(CPU, class_count=logits.shape[1], max_pixels=10**9)
    found = masker.start(logits, np.array([[height, width]] * len(logits), np.int32))
    masker.wait()
    return found


def logits_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((65, 65), (480, 640)),
        ((65, 65), (40, 30)),  # smaller than the logits
        ((9, 7), (8, 3000)),
        ((7, 9), (3000, 8)),
        ((1, 1), (6, 7)),
        ((40, 3), (40, 1)),
        ((8, 8), (8, 8)),  # nothing to interpolate
    ],
)
@pytest.mark.parametrize("tile_bytes", [1 << 30, 50_000], ids=["one tile", "many tiles"])
def test_masks_are_those_of_torch_and_of_numpy(
    monkeypatch: pytest.MonkeyPatch, source: tuple[int, int], target: tuple[int, int], tile_bytes: int
) -> None:
    monkeypatch.setattr(mask_ops_cuda, "_TILE_BYTES", tile_bytes)
    logits = logits_of(2, 21, *source)
    found = masks_of(logits, *target)
    # In double precision, which decides ties that float32 rounds.
    upsampled = torch.nn.functional.interpolate(logits.double(), size=target, mode="bilinear", align_corners=False)
    expected = upsampled.argmax(1).numpy()
    assert found.masks.dtype == np.uint8
    assert found.masks.shape == (2, *target)
    # Pixels where two classes come within float32's rounding of each other may go either way.
    assert (found.masks != expected).mean() <= 1e-4
    sizes = np.array([target] * 2, np.int32)
    by_numpy = mask_ops.postprocess(logits.numpy(), sizes, class_count=21, max_pixels=10**9)
    assert (found.masks != by_numpy.masks).mean() <= 1e-4
    assert found.class_pixels.tolist() == [np.bincount(mask.ravel(), minlength=21).tolist() for mask in found.masks]


def test_equal_logits_go_to_the_lower_class() -> None:
    assert masks_of(torch.zeros(1, 4, 3, 3), 10, 10).class_pixels.tolist() == [[100, 0, 0, 0]]


def test_256_classes_fit_a_uint8_mask() -> None:
    logits = torch.zeros(1, 256, 2, 2)
    logits[0, 255] = 1
    assert (masks_of(logits, 4, 4).masks == 255).all()


@pytest.mark.parametrize(
    ("classes", "source", "target"),
    [
        (21, (65, 65), (5000, 8000)),
        (256, (65, 65), (3000, 4000)),
        (2, (1, 100_000), (4000, 1)),
        (2, (2, 2), (1, 10**7)),
    ],
    ids=["40 megapixels", "256 classes", "wide logits for a narrow mask", "one row"],
)
def test_no_tensor_is_larger_than_a_tile(
    classes: int, source: tuple[int, int], target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count on torch's `meta` device, where nothing is computed, what each operation would take."""
    largest = 0
    blend = mask_ops_cuda._blend  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - what allocates

    def watched(values: torch.Tensor, dimension: int, axis: list[torch.Tensor]) -> torch.Tensor:
        nonlocal largest
        result = blend(values, dimension, axis)
        largest = max(largest, result.nbytes)
        return result

    monkeypatch.setattr(mask_ops_cuda, "_blend", watched)
    meta = torch.device("meta")
    masker = mask_ops_cuda.Masker(meta, class_count=classes, max_pixels=10**9)
    mask = torch.empty(target, dtype=torch.uint8, device=meta)
    counts = torch.zeros(classes, dtype=torch.int64, device=meta)
    masker._segment(torch.empty((classes, *source), device=meta), mask, counts)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
    # Three of these and what compares them stand at a time.
    assert 0 < largest <= (512 << 20) // 4


@pytest.mark.parametrize(
    ("logits", "sizes", "message"),
    [
        (torch.zeros(1, 3, 2, 2), [[5, 4]], "3 classes, but this model has 4"),
        (torch.zeros(1, 4, 0, 2), [[5, 4]], "every side must be at least 1"),
        (torch.zeros(2, 4, 2, 2), [[5, 4], [4, 5]], r"must be equal, got \[\[5, 4\], \[4, 5\]\]"),
        (torch.zeros(1, 4, 2, 2), [[2**31 - 1, 2**31 - 1]], "at most 100"),
    ],
)
def test_tensors_that_are_no_masks_are_refused(logits: torch.Tensor, sizes: list[list[int]], message: str) -> None:
    masker = mask_ops_cuda.Masker(CPU, class_count=4, max_pixels=100)
    with pytest.raises(logit_tiles.InvalidLogitsError, match=message):
        masker.start(logits, np.array(sizes, np.int32))
