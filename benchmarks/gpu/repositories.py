"""The model repositories that the server is measured with: what build_models.py makes, and what it is compared with."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplabv3 import VOC_CLASS_NAMES, WeightsSource
from deeplabv3.building import tracing
from deeplabv3.building.assembly import build
from deeplabv3.building.fusion import fuse_for_cudnn
from deeplabv3.building.model_file import record_of
from deeplabv3.building.plan import Plan
from deeplabv3.repository.config import config_text, read_config

if TYPE_CHECKING:
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from benchmarks.gpu.settings import Settings


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to serve.

    Attributes:
        name: what it is called in the results.
        batches: whether the core model batches requests; otherwise each runs alone.
        preprocess_device: where the pictures are resized, "cpu" or "cuda".
    """

    name: str
    batches: bool = True
    preprocess_device: str = "cpu"


SETUPS = (
    Setup("dynamic batching"),
    Setup("one request at a time", batches=False),
    Setup("dynamic batching, resize on the GPU", preprocess_device="cuda"),
)


def write_model(model: DeepLabV3, variant: str, settings: Settings, file: Path, *, cudnn: str) -> Plan:
    """Write the model.pt that all set-ups serve, fp16 on a GPU; its check is the bare model's."""
    plan = Plan(
        variant,
        WeightsSource("calibrated on noise"),
        VOC_CLASS_NAMES,
        resnet_options={"width_per_group": settings.width},
        device=settings.device,
        precision="fp16" if settings.on_gpu else "fp32",
        cudnn=cudnn,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        precision = tracing.PRECISIONS[plan.precision]
        module = tracing.trace(model, aux=False, precision=precision, device=plan.device, cudnn=plan.cudnn)
        if plan.cudnn == "fused":
            fuse_for_cudnn(module)
        tracing.save(module, file, record_of(plan).as_extra_files())
    return plan


def write_repository(folder: Path, plan: Plan, setup: Setup, settings: Settings, file: Path) -> Path:
    """Write a complete repository for one set-up, with the configs of build_models.py."""
    version = folder / plan.core / "1"
    version.mkdir(parents=True)
    shutil.copy(file, version / "model.pt")
    device = setup.preprocess_device if settings.on_gpu else "cpu"
    size = {"preprocess.resize_size": str(settings.size)}
    build(folder, [plan], configs_only=True, preprocess_device=device, settings=size)
    if not setup.batches:
        for name in (plan.core, plan.ensemble):
            _serve_singly(folder / name / "config.pbtxt")
    return folder


def _serve_singly(path: Path) -> None:
    """Let a model take one request at a time, as a repository without dynamic batching does."""
    config = read_config(path)
    config.max_batch_size = 1
    config.ClearField("dynamic_batching")
    kept = [warm_up for warm_up in config.model_warmup if warm_up.batch_size == 1]
    del config.model_warmup[:]
    config.model_warmup.extend(kept)
    path.write_text(config_text(config))
