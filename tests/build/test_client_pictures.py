"""The client's pictures and tensors against torch and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.utils import draw_segmentation_masks

from deeplab_client import InvalidImageError, Segmentation, SegmentationClient, voc
from deeplab_client.testing import FakeTransport

pytestmark = pytest.mark.build


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.6, 0.8, 0.9, 0.95, 1.0])
def test_overlays_have_torchvisions_colours_and_an_untouched_background(alpha: float) -> None:
    """Every class over every value of every channel."""
    mask = np.repeat(np.arange(21, dtype=np.uint8), 256)[np.newaxis].repeat(2, axis=0)
    values = np.tile(np.arange(256, dtype=np.uint8), 21)
    image = np.stack([values, values[::-1], np.roll(values, 97)], axis=-1)[np.newaxis].repeat(2, axis=0)
    result = Segmentation(mask, voc.CLASS_NAMES, "m", "1", None)
    drawn = np.asarray(result.overlay(image, alpha=alpha))

    classes = range(1, 21)
    expected = draw_segmentation_masks(
        torch.from_numpy(image).permute(2, 0, 1),
        torch.stack([torch.from_numpy(mask == class_id) for class_id in classes]),
        alpha=alpha,
        colors=[(int(r), int(g), int(b)) for r, g, b in (voc.PALETTE[class_id] for class_id in classes)],
    )
    foreground = mask > 0
    np.testing.assert_array_equal(drawn[foreground], expected.permute(1, 2, 0).numpy()[foreground])
    # torchvision darkens some background values by one step for some alphas.
    np.testing.assert_array_equal(drawn[~foreground], image[~foreground])


def sent(image: object) -> bytes:
    fake = FakeTransport()
    SegmentationClient("fake", transport=fake).segment(image)  # pyright: ignore[reportArgumentType] wrong ones too
    return fake.requests[-1].image


def test_a_tensor_is_taken_as_the_array_that_it_holds() -> None:
    tensor = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    for same in (tensor, tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0), tensor / 255, (tensor / 255).double()):
        assert sent(same) == sent(tensor.numpy())
    assert sent(tensor[:, :, 0]) == sent(tensor[:, :, 0].numpy())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (
            torch.zeros(3, 5, 7, dtype=torch.uint8),
            r"torch\.Tensor of dtype uint8 and shape \(3, 5, 7\).*permute\(1, 2, 0\)",
        ),
        (torch.zeros(2, 3, 5, 7), r"\(2, 3, 5, 7\).*one image"),
        (torch.zeros(5, 7, 3, dtype=torch.int32), "int32"),
        (torch.full((5, 7, 3), 200.0), "from 200 to 200 as an image: divide it by 255"),
        (torch.zeros(5, 7, 3, requires_grad=True), r"on device cpu .*\.detach\(\)"),
        (torch.zeros(5, 7, 3, dtype=torch.bfloat16), "BFloat16"),
        # The one device without memory of its own that every build of torch has.
        (torch.zeros(5, 7, 3, device="meta"), r"torch\.Tensor on device meta .*\.cpu\(\)"),
    ],
)
def test_other_tensors_are_refused_with_a_remedy(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(InvalidImageError, match=words):
        sent(tensor)
