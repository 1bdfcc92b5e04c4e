"""The model.pt files of a variant: load the weights, trace, check, and record the build."""

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabV3
from torchvision.ops import FrozenBatchNorm2d

from deeplabv3.building import tracing
from deeplabv3.building.calibration import Calibration, pixel_settings
from deeplabv3.building.checking import VERIFY_SHAPE, Agreement, agreement, verify
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
"""The values of --norm-layer."""

AGREEMENT = "agreement"
"""The field of a build record with the agreement of int8 with float32, a checking.Agreement."""

CALIBRATED_WITH = "calibrated_with"
"""The field of a build record with the settings of `preprocess` at the calibration of int8."""

_PACKAGE = Path(__file__).resolve().parents[1]
# The sources that compute a trace: a change of one makes every model.pt out of date.
_SOURCES = (
    "building/calibration.py",
    "building/checking.py",
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


def record_of(plan: Plan, calibration: Calibration | None = None) -> BuildRecord:
    """Return the record that a build of a plan with the present sources writes."""
    sources = hashlib.sha256()
    for name in _SOURCES:
        sources.update((_PACKAGE / name).read_bytes())
    return BuildRecord(
        {
            "variant": plan.variant,
            "weights": plan.source.label,
            "class_names": list(plan.class_names),
            "background": plan.background,
            "aux": plan.aux,
            "mean": list(plan.mean),
            "std": list(plan.std),
            "pretrained_backbone": plan.pretrained_backbone,
            "resnet_options": dict(plan.resnet_options),
            "device": plan.device,
            "precision": plan.precision,
            "cudnn": plan.cudnn,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "sources_sha256": sources.hexdigest(),
            **(
                {}
                if calibration is None
                else {
                    "calibration_sha256": calibration.digest,
                    CALIBRATED_WITH: pixel_settings(calibration.parameters),
                }
            ),
        }
    )


def is_up_to_date(record: BuildRecord | None, plan: Plan, calibration: Calibration | None) -> bool:
    """Return whether a record is the one that a build of a plan would write.

    Raises:
        BuildError: it is, but the agreement of int8 is below plan.min_agreement, as it would be again.
    """
    if record is None:
        return False
    fields = dict(record.fields)
    measured = fields.pop(AGREEMENT, None)
    if fields != record_of(plan, calibration).fields:
        return False
    if measured is not None:
        _check_agreement(plan, Agreement(**measured))
    return True


def write_models(partials: Mapping[str, Path], plan: Plan, *, calibration: Calibration | None, progress: bool) -> None:
    """Write the files of a variant's models and check them against PyTorch.

    Args:
        partials: the files to write, by the names in `plan.models`.
        plan: the plan of the variant.
        calibration: the pictures for int8; None for other precisions.
        progress: show a progress bar of a download on stderr.

    Raises:
        DeepLabV3Error: the weights do not fit, or a saved file differs from PyTorch.
        OSError: the storage failed.
    """
    _log.info("%s: loading weights %s", plan.variant, plan.source.label)
    model = _load(plan, progress=progress)
    _log.info("%s: tracing for %s in %s", plan.variant, plan.device, plan.precision)
    pictures = None
    if calibration is not None:
        _log.info("%s: calibrating with %d pictures", plan.variant, calibration.observed_count)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plan.mean, plan.std))
        pictures = (tracing.normalized(samples.permute(0, 2, 3, 1), mean, std) for samples in calibration.to_observe())
    precision = tracing.PRECISIONS[plan.precision]
    tracer = tracing.Tracer(
        model, aux=plan.aux, precision=precision, device=plan.device, cudnn=plan.cudnn, pictures=pictures
    )
    record, agreed = record_of(plan, calibration), None
    core = tracer.core(mean=plan.mean, std=plan.std)
    if calibration is not None:
        tracing.save(core, partials[plan.core], {})
        measured = agreement(partials[plan.core], model, calibration.held_out(), plan)
        agreed = _check_agreement(plan, measured)
        record = BuildRecord({**record.fields, AGREEMENT: asdict(measured)})
    traced = {plan.core: core}
    if plan.direct:
        traced[plan.direct_name] = tracer.direct()
    _save(traced, partials, record)
    shape = "x".join(map(str, VERIFY_SHAPE))
    _log.info("%s: checking the saved files against PyTorch at %s", plan.variant, shape)
    findings = verify(partials, model, plan)
    if plan.cudnn.startswith("fused"):  # after the check, because only a GPU can run the fused file
        with tracing.without_deprecation_warnings():
            for module in traced.values():
                fuse_for_cudnn(module)
        _save(traced, partials, record)
    sizes = " and ".join(f"{name} of {partials[name].stat().st_size / 2**20:.0f} MB" for name in plan.models)
    # The difference on noise says nothing about int8, whose ranges come from pictures.
    _log.info("%s: done, %s; %s", plan.variant, sizes, agreed or findings)


def _save(traced: Mapping[str, torch.jit.ScriptModule], partials: Mapping[str, Path], record: BuildRecord) -> None:
    for name, module in traced.items():
        tracing.save(module, partials[name], record.as_extra_files())


def _check_agreement(plan: Plan, measured: Agreement) -> str:
    """Return the agreement of int8 with float32 as text.

    Raises:
        BuildError: it is below plan.min_agreement.
    """
    found = (
        f"same class as fp32 for {measured.same_class:.2%} of the pixels of {measured.pictures} pictures held out from "
        f"calibration, error of the logits {measured.error:.2%}"
    )
    if measured.same_class < plan.min_agreement:
        raise BuildError(
            f"{plan.core} in int8: {found}, but --min-agreement is {plan.min_agreement:g}; calibrate with more "
            "pictures like those that will be served, use --precision bf16, or lower --min-agreement"
        )
    return found


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
        _log.warning("%s: warning: %s", plan.variant, warning.message)
    return model
