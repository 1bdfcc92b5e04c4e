"""The figures of a run as a picture: bars of each class's IoU, and a heat map of each confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

_COLUMNS = 2
_BARS_INCHES, _MAP_INCHES, _WIDTH_INCHES = 5.5, 9.0, 18.0
# Below this a cell shows its colour and no number.
_LEAST_SHOWN = 0.005
# Cells darker than this take white digits.
_DARK = 0.5


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draw a report as a PNG."""
    predictors: list[dict[str, Any]] = content["predictors"]
    names: list[str] = content["class_names"]
    rows = -(-len(predictors) // _COLUMNS)
    # A figure without pyplot: no global state, no display.
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(_WIDTH_INCHES, _BARS_INCHES + rows * _MAP_INCHES), layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[_BARS_INCHES, *[_MAP_INCHES] * rows])
    _bars(figure.add_subplot(grid[0, :]), predictors, names)
    for index, predictor in enumerate(predictors):
        alone = index == len(predictors) - 1 and index % _COLUMNS == 0
        column = slice(None) if alone else index % _COLUMNS
        _heat_map(figure.add_subplot(grid[1 + index // _COLUMNS, column]), predictor, names)
    dataset = content["dataset"]
    untrained = any(predictor["untrained"] for predictor in predictors)
    figure.suptitle(
        f"{content['images']} of {dataset['size']} images, {dataset['kind']}"
        + (" - UNTRAINED WEIGHTS: these figures mean nothing" if untrained else ""),
        fontsize=16,
        color="darkred" if untrained else "black",
    )
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(path)


def _bars(axes: Any, predictors: list[dict[str, Any]], names: list[str]) -> None:  # noqa: ANN401  matplotlib's Axes
    width = 0.8 / len(predictors)
    places = np.arange(len(names))
    for index, predictor in enumerate(predictors):
        heights = [100 * (each["iou"] or 0.0) for each in predictor["classes"]]
        mean = predictor["mean_iou"]
        label = f"{predictor['name']}, mean {'-' if mean is None else f'{100 * mean:.1f}'}"
        offset = (index - (len(predictors) - 1) / 2) * width
        axes.bar(places + offset, heights, width, label=label)
        for place, each in zip(places + offset, predictor["classes"], strict=True):
            if each["iou"] is None:
                axes.text(place, 1, "absent", rotation=90, ha="center", va="bottom", fontsize=8, color="grey")
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=11)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("intersection over union, percent")
    axes.grid(axis="y", alpha=0.4)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(predictors), frameon=False)


def _heat_map(axes: Any, predictor: dict[str, Any], names: list[str]) -> None:  # noqa: ANN401  matplotlib's Axes
    counts: npt.NDArray[np.int64] = np.array(predictor["confusion"])
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    axes.set_facecolor("lightgrey")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= _LEAST_SHOWN):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > _DARK else "black",
        )
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true; each row sums to 100 %, grey rows have no pixel")
    axes.set_title(predictor["name"])
