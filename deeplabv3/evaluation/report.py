"""The figures of a run: as JSON, and as a table."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deeplab_client import voc
from deeplabv3.evaluation.arguments import VARIANTS
from deeplabv3.evaluation.metrics import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deeplabv3.evaluation.predictors import PredictorFacts
    from deeplabv3.evaluation.samples import Dataset
    from deeplabv3.evaluation.tally import Tally

_PUBLISHED_ON = "COCO-val2017-VOC-labels"


def report(
    dataset: Dataset,
    predictors: Sequence[PredictorFacts],
    tally: Tally,
    *,
    server: str | None,
) -> dict[str, Any]:
    """Return everything that was measured, as JSON can hold it; shares from 0 to 1.

    Args:
        dataset: the images.
        predictors: what was measured.
        tally: the sums over them.
        server: its version.
    """
    whole = dataset.is_coco_val2017 and len(tally.done) == len(dataset.ids)
    return {
        "dataset": dict(dataset.facts),
        "images": len(tally.done),
        "seconds": round(tally.seconds, 3),
        "class_names": list(voc.CLASS_NAMES),
        "predictors": [_predictor(facts, tally, whole=whole) for facts in predictors],
        "agreement": [
            {"between": list(pair), "equal": equal, "pixels": pixels, "share": equal / pixels if pixels else None}
            for pair, (equal, pixels) in tally.agreements.items()
        ],
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torchvision", "pillow", "numpy", "pycocotools")},
            "tritonserver": server,
        },
    }


def _predictor(facts: PredictorFacts, tally: Tally, *, whole: bool) -> dict[str, Any]:
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
        "classes_absent": [voc.CLASS_NAMES[class_id] for class_id in figures.absent],
        "published": published,
        # Of another data set or a part of this one, a difference would say nothing.
        "difference": {
            name: _difference(measured, published[name])
            for name, measured in (("mean_iou", figures.mean_iou), ("pixel_accuracy", figures.pixel_accuracy))
        }
        if published is not None and whole
        else None,
        "classes": [
            {"id": class_id, "name": name, "iou": iou, "accuracy": accuracy, "pixels": int(matrix[class_id].sum())}
            for class_id, (name, iou, accuracy) in enumerate(
                zip(voc.CLASS_NAMES, figures.class_iou, figures.class_accuracy, strict=True)
            )
        ],
        "confusion": matrix.tolist(),
    }


def published_figures(facts: PredictorFacts) -> dict[str, float] | None:
    """Return what torchvision recorded with its weights, from 0 to 1; None where a predictor has others."""
    if facts.weights is None or facts.variant not in VARIANTS:
        return None
    from torchvision.models import get_model_weights  # noqa: PLC0415  loads torch

    known = get_model_weights(f"deeplabv3_{facts.variant}").__members__
    if facts.weights not in known:
        return None
    recorded: Mapping[str, float] = known[facts.weights].meta["_metrics"][_PUBLISHED_ON]
    return {"mean_iou": recorded["miou"] / 100, "pixel_accuracy": recorded["pixel_acc"] / 100}


def table(content: Mapping[str, Any]) -> Table:
    """Return a report as a table, in percent."""
    predictors: list[dict[str, Any]] = content["predictors"]
    result = Table(
        title=f"{content['images']} images of {content['dataset']['size']}: intersection over union, percent"
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
