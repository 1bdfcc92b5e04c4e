"""One model.pt: load the weights, trace, check, and record what made it."""

import hashlib
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabV3
from torchvision.ops import FrozenBatchNorm2d

from deeplabv3.building import tracing
from deeplabv3.building.calibration import Calibration
from deeplabv3.building.fusion import fuse_for_cudnn
from deeplabv3.building.plan import Plan
from deeplabv3.errors import BuildError
from deeplabv3.models.variants import load_model
from deeplabv3.repository.record import BuildRecord

NORM_LAYERS: dict[str, type[nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "InstanceNorm2d": nn.InstanceNorm2d,
}
"""What --norm-layer may name."""

AGREEMENT = "agreement"
"""The field of a build record that says how near int8 comes to float32, a tracing.Agreement."""

_PACKAGE = Path(__file__).resolve().parents[1]
# What computes a trace: a change of one makes every model.pt out of date.
_SOURCES = (
    "building/calibration.py",
    "building/dilation.py",
    "building/fusion.py",
    "building/model_file.py",
    "building/packing.py",
    "building/quantization.py",
    "building/tracing.py",
    "models/checkpoints.py",
    "models/variants.py",
    "models/weights.py",
)

_log = logging.getLogger("build_models")


def record_of(plan: Plan) -> BuildRecord:
    """Return the record that a build of a plan by these very sources leaves."""
    sources = hashlib.sha256()
    for name in _SOURCES:
        sources.update((_PACKAGE / name).read_bytes())
    return BuildRecord(
        {
            "variant": plan.variant,
            "weights": plan.source.label,
            "class_names": list(plan.class_names),
            "aux": plan.aux,
            "pretrained_backbone": plan.pretrained_backbone,
            "resnet_options": dict(plan.resnet_options),
            "device": plan.device,
            "precision": plan.precision,
            "cudnn": plan.cudnn,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "sources_sha256": sources.hexdigest(),
            **({"calibration_sha256": plan.calibration.digest} if plan.calibration else {}),
        }
    )


def is_of(record: BuildRecord | None, plan: Plan) -> bool:
    """Return whether a record is the one that a build of a plan leaves, whose agreement, if measured, is enough."""
    if record is None:
        return False
    agreement = record.fields.get(AGREEMENT)
    expected = record_of(plan).fields
    return record.fields == ({**expected, AGREEMENT: agreement} if agreement else expected) and (
        agreement is None or agreement["same_class"] >= plan.min_agreement
    )


def write_model(partial: Path, plan: Plan, *, progress: bool) -> None:
    """Write a model's file and check it against PyTorch.

    Raises:
        DeepLabV3Error: the weights do not fit, or the file computes something else.
        OSError: what the storage says.
    """
    _log.info("%s: loading weights %s", plan.core, plan.source.label)
    model = _load(plan, progress=progress)
    _log.info("%s: tracing for %s in %s", plan.core, plan.device, plan.precision)
    precision = tracing.PRECISIONS[plan.precision]
    pictures = None
    if plan.calibration is not None:
        _log.info("%s: calibrating with %d pictures", plan.core, plan.calibration.observed)
        pictures = plan.calibration.to_observe()
    traced = tracing.trace(
        model, aux=plan.aux, precision=precision, device=plan.device, cudnn=plan.cudnn, pictures=pictures
    )
    record = record_of(plan)
    tracing.save(traced, partial, record.as_extra_files())
    shape = "x".join(map(str, tracing.VERIFY_SHAPE))
    _log.info("%s: checking the saved file against PyTorch at %s", plan.core, shape)
    findings = tracing.verify(partial, model, aux=plan.aux, precision=precision)
    if plan.cudnn == "fused":  # after the check, because only a GPU runs what comes out
        fuse_for_cudnn(traced)
        tracing.save(traced, partial, record.as_extra_files())
    if plan.calibration is not None:
        measured = _agreement(partial, model, plan, plan.calibration)
        record = BuildRecord({**record.fields, AGREEMENT: asdict(measured)})
        tracing.save(traced, partial, record.as_extra_files())
    _log.info("%s: done, %.0f MB; %s", plan.core, partial.stat().st_size / 2**20, findings)


def _agreement(partial: Path, model: DeepLabV3, plan: Plan, calibration: Calibration) -> tracing.Agreement:
    measured = tracing.agreement(partial, model, calibration.held_out())
    found = (
        f"same class as fp32 for {measured.same_class:.2%} of the pixels of {measured.pictures} pictures held out from "
        f"calibration, error of the logits {measured.error:.2%}"
    )
    _log.info("%s: %s", plan.core, found)
    if measured.same_class < plan.min_agreement:
        raise BuildError(
            f"{plan.core} in int8: {found}, and --min-agreement is {plan.min_agreement:g}; calibrate with more "
            "pictures of the kind to be served, take --precision bf16, or accept it with a lower --min-agreement"
        )
    return measured


def _load(plan: Plan, *, progress: bool) -> DeepLabV3:
    resnet_options = dict(plan.resnet_options)
    if "norm_layer" in resnet_options:
        resnet_options["norm_layer"] = NORM_LAYERS[resnet_options["norm_layer"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = load_model(
            plan.variant,
            plan.source,
            num_classes=len(plan.class_names),
            pretrained_backbone=plan.pretrained_backbone,
            progress=progress,
            resnet_options=resnet_options,
        )
    for warning in caught:
        _log.warning("%s: warning: %s", plan.core, warning.message)
    return model
