"""The published figures of DeepLabV3, computed again."""

import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import WeightsEnum
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.models.names import direct_name
from deeplabv3.models.variants import PUBLISHED_WEIGHTS, drop_auxiliary_head

if TYPE_CHECKING:
    from rich.table import Table

SIZE = 520
"""Height and width in pixels of the input for which operations are counted."""

RECORDED = "recorded"
"""The source of a figure that was not measured here."""

_MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Published:
    """The published figures of one variant; a megabyte is 1024 x 1024 bytes."""

    parameters: int
    gflops: float
    megabytes: float
    miou: float
    pixel_accuracy: float


# Source: the page of mlverse's torchvision on model_deeplabv3 and torchvision's table of segmentation weights,
# https://docs.pytorch.org/vision/stable/models.html#semantic-segmentation
PUBLISHED = {
    "resnet50": Published(42_004_074, 178.72, 161, 66.4, 92.4),
    "resnet101": Published(60_996_202, 258.74, 233, 67.4, 92.4),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one variant.

    Attributes:
        name: its name in the JSON.
        title: its name in the table.
        value: the computed value.
        published: the published value, or None.
        digits: the number of decimals that are shown, which is that of the published value.
        source: "counted" on the model, "measured" on a file, or RECORDED: not measured here, but stored with
            torchvision's weights.
    """

    name: str
    title: str
    value: float
    published: float | None
    digits: int
    source: str

    @property
    def rounded(self) -> float:
        """The value at the precision of the published one."""
        return round(self.value, self.digits or None)

    @property
    def difference(self) -> float | None:
        """The rounded value minus the published one, or None."""
        return None if self.published is None else round(self.rounded - self.published, self.digits or None)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_gflops(model: nn.Module) -> float:
    """Return the operations of one forward of (1, 3, 520, 520), in units of 10^9.

    A multiplication and the addition after it count as one, as in torchvision's tables; torch's counter counts two.
    Nothing is computed, because a copy of the model runs on torch's `meta` device.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        copy.deepcopy(model).eval().to("meta")(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return counter.get_total_flops() / 2 / 1e9


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the size in bytes of a file with a model's state dict."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def recorded_accuracy(weights: WeightsEnum) -> tuple[float, float]:
    """Return the mean IoU and the pixel accuracy in percent, which torchvision stores with its weights."""
    recorded = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
    return recorded["miou"], recorded["pixel_acc"]


def describe(variant: str, model: DeepLabV3, *, traced_bytes: int, served_bytes: int) -> list[Figure]:
    """Return the figures of a variant.

    Args:
        variant: one of VARIANTS.
        model: the variant with its auxiliary head, as it is published.
        traced_bytes: size of its traced file in bytes.
        served_bytes: size of the core model's traced file, without the head, in bytes.
    """
    published = PUBLISHED[variant]
    served = copy.deepcopy(model)
    drop_auxiliary_head(served)
    checkpoint, traced, served_file = (
        size / _MEGABYTE for size in (checkpoint_bytes(model), traced_bytes, served_bytes)
    )
    miou, pixel_accuracy = recorded_accuracy(PUBLISHED_WEIGHTS[variant])
    counted, saved = "counted", "measured"
    return [
        Figure("parameters", "parameters", count_parameters(model), published.parameters, 0, counted),
        Figure("gflops", f"GFLOPS at {SIZE} x {SIZE}", count_gflops(model), published.gflops, 2, counted),
        Figure("checkpoint_megabytes", "checkpoint, MB", checkpoint, published.megabytes, 0, saved),
        Figure("traced_megabytes", "traced model.pt, MB", traced, published.megabytes, 0, saved),
        Figure("miou", "mean IoU, %", miou, published.miou, 1, RECORDED),
        Figure("pixel_accuracy", "pixel accuracy, %", pixel_accuracy, published.pixel_accuracy, 1, RECORDED),
        Figure("served_parameters", "served: parameters", count_parameters(served), None, 0, counted),
        Figure("served_gflops", "served: GFLOPS", count_gflops(served), None, 2, counted),
        Figure("served_megabytes", "served: model.pt, MB", served_file, None, 0, saved),
    ]


def as_json(described: Mapping[str, Sequence[Figure]]) -> str:
    """Return the figures as JSON, by variant and name of the figure."""
    data = {
        variant: {
            figure.name: {
                "value": figure.value,
                "rounded": figure.rounded,
                "published": figure.published,
                "difference": figure.difference,
                "source": figure.source,
            }
            for figure in found
        }
        for variant, found in described.items()
    }
    return json.dumps(data, indent=2)


def as_table(variant: str, found: Sequence[Figure]) -> "Table":
    """Return the figures of one variant as a table that fits 80 columns."""
    from rich.table import Table  # noqa: PLC0415 - a build needs no tables

    table = Table(title=direct_name(variant), title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("found", "published", "difference"):
        table.add_column(column, justify="right")
    table.add_column("how")
    for figure in found:
        published, difference = (
            "" if value is None else f"{value:{sign},.{figure.digits}f}"
            for value, sign in ((figure.published, ""), (figure.difference, "+"))
        )
        if figure.source == RECORDED:
            table.add_row(figure.title, "", published, "", "not measured")
            continue
        same = figure.difference == 0
        shown = f"{figure.value:,.{figure.digits}f}"
        table.add_row(figure.title, shown, published, "0" if same else difference, figure.source)
    return table
