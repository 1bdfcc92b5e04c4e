"""The figures of a run as JSON, as a table and as a picture."""

from __future__ import annotations

import io
import platform
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deeplabv3.evaluation import images
from deeplabv3.evaluation.counting import Figures
from deeplabv3.models.figures import recorded_accuracy
from deeplabv3.models.variants import PUBLISHED_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from deeplabv3.evaluation.counting import Tally
    from deeplabv3.evaluation.datasets import Dataset
    from deeplabv3.evaluation.predictors import PredictorFacts

_PACKAGES = ("torch", "torchvision", "torchmetrics", "pillow", "numpy", "pycocotools")

_COLUMNS = 2
_BARS_INCHES, _MAP_INCHES, _WIDTH_INCHES = 5.5, 9.0, 18.0
# More classes than this enlarge the picture, up to this factor, so that names and numbers keep their size.
_ROOMY_CLASSES, _MAX_SCALE = 30, 3.0
# Cells below this share show only their color.
_MIN_SHOWN = 0.005
# Cells above this share have white digits.
_DARK = 0.5


def report(
    dataset: Dataset,
    predictors: Sequence[PredictorFacts],
    tally: Tally,
    *,
    class_names: Sequence[str],
    server: str | None,
) -> dict[str, Any]:
    """Return all figures of a run, JSON-compatible; shares are from 0 to 1.

    Args:
        dataset: the images.
        predictors: the measured predictors.
        tally: the sums over the images.
        class_names: the name of each class id.
        server: the version of the server; None if there was none.
    """
    whole = dataset.is_coco_val2017 and len(tally.done) == len(dataset.ids)
    return {
        "dataset": dict(dataset.facts),
        "images": len(tally.done),
        "seconds": round(tally.seconds, 3),
        "class_names": list(class_names),
        "predictors": [_predictor(facts, tally, class_names, whole=whole) for facts in predictors],
        "agreement": [
            {"between": list(pair), "equal": equal, "pixels": pixels, "share": equal / pixels if pixels else None}
            for pair, (equal, pixels) in tally.agreements.items()
        ],
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "tritonserver": server,
        },
    }


def _predictor(facts: PredictorFacts, tally: Tally, class_names: Sequence[str], *, whole: bool) -> dict[str, Any]:
    matrix = tally.matrices[facts.name]
    figures = Figures.of(matrix)
    published = published_figures(facts)
    return {
        **asdict(facts),
        "untrained": facts.untrained,
        "pixels": figures.pixels,
        "mean_iou": figures.mean_iou,
        "pixel_accuracy": figures.pixel_accuracy,
        "mean_class_accuracy": figures.mean_accuracy,
        "classes_absent": [class_names[class_id] for class_id in figures.absent],
        "published": published,
        # Only for the complete data set of the published figures.
        "difference": {
            name: _difference(measured, published[name])
            for name, measured in (("mean_iou", figures.mean_iou), ("pixel_accuracy", figures.pixel_accuracy))
        }
        if published is not None and whole
        else None,
        "classes": [
            {"id": class_id, "name": name, "iou": iou, "accuracy": accuracy, "pixels": int(matrix[class_id].sum())}
            for class_id, (name, iou, accuracy) in enumerate(
                zip(class_names, figures.class_iou, figures.class_accuracy, strict=True)
            )
        ],
        "confusion": matrix.tolist(),
    }


def published_figures(facts: PredictorFacts) -> dict[str, float] | None:
    """Return the accuracies that torchvision stores with its weights, from 0 to 1; None for other weights."""
    weights = PUBLISHED_WEIGHTS.get(facts.variant)
    if weights is None or weights.name != facts.weights:
        return None
    mean_iou, pixel_accuracy = recorded_accuracy(weights)
    return {"mean_iou": mean_iou / 100, "pixel_accuracy": pixel_accuracy / 100}


def table(content: Mapping[str, Any]) -> Table:
    """Return a report as a table in percent."""
    predictors: list[dict[str, Any]] = content["predictors"]
    result = Table(
        title=f"{images(content['images'])} of {content['dataset']['size']}: intersection over union, percent"
    )
    result.add_column("class")
    for predictor in predictors:
        result.add_column(predictor["name"], justify="right", overflow="fold")
    for class_id, name in enumerate(content["class_names"]):
        result.add_row(name, *(_percent(predictor["classes"][class_id]["iou"]) for predictor in predictors))
    result.add_section()
    rows = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy", "mean class accuracy": "mean_class_accuracy"}
    for label, key in rows.items():
        result.add_row(label, *(_percent(predictor[key]) for predictor in predictors), style="bold")
        if key != "mean_class_accuracy" and any(predictor["published"] for predictor in predictors):
            result.add_row("  published", *(_percent((each["published"] or {}).get(key)) for each in predictors))
            if any(predictor["difference"] for predictor in predictors):
                result.add_row(
                    "  difference",
                    *(_percent((each["difference"] or {}).get(key), signed=True) for each in predictors),
                )
    result.add_section()
    result.add_row("classes absent", *(str(len(predictor["classes_absent"])) for predictor in predictors))
    result.add_row("weights", *(predictor["weights"] or "unknown" for predictor in predictors))
    result.add_row("compared at", *(predictor["resolution"] for predictor in predictors))
    result.add_row("resize", *(predictor["resize"] or "unknown" for predictor in predictors))
    if content["agreement"]:
        result.caption = "\n".join(
            f"{' and '.join(each['between'])} agree on {_percent(each['share'], digits=4)} % of {each['pixels']} pixels"
            for each in content["agreement"]
        )
    return result


def _percent(share: float | None, *, signed: bool = False, digits: int = 2) -> str:
    if share is None:
        return "-"
    return f"{100 * share:{'+' if signed else ''}.{digits}f}"


def _difference(measured: float | None, published: float) -> float | None:
    return None if measured is None else measured - published


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def draw(content: Mapping[str, Any]) -> bytes:
    """Return a report as a PNG."""
    # matplotlib takes a second to load.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - see above
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415 - see above

    predictors: list[dict[str, Any]] = content["predictors"]
    names: list[str] = content["class_names"]
    rows = -(-len(predictors) // _COLUMNS)
    # Without pyplot, which has global state and needs a display.
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    scale = min(max(1.0, len(names) / _ROOMY_CLASSES), _MAX_SCALE)
    figure = Figure(figsize=(scale * _WIDTH_INCHES, scale * (_BARS_INCHES + rows * _MAP_INCHES)), layout=layout)
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
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _bars(axes: Any, predictors: list[dict[str, Any]], names: list[str]) -> None:  # noqa: ANN401 - matplotlib's Axes
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
                axes.text(place, 1, "absent", rotation=90, ha="center", va="bottom", fontsize=8, color="gray")
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=11)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("intersection over union, percent")
    axes.grid(axis="y", alpha=0.4)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(predictors), frameon=False)


def _heat_map(axes: Any, predictor: dict[str, Any], names: list[str]) -> None:  # noqa: ANN401 - matplotlib's Axes
    counts: npt.NDArray[np.int64] = np.array(predictor["confusion"])
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    axes.set_facecolor("lightgrey")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= _MIN_SHOWN):
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
    axes.set_ylabel("true; each row sums to 100 %, gray rows have no pixel")
    axes.set_title(predictor["name"])
