"""The whole pipeline under load: images per second, latency, and the time by step."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from benchmarks import servers
from benchmarks.gpu.models import traced
from benchmarks.harness import cores
from benchmarks.load import Load, Picture, Sender
from deeplabv3 import VOC_CLASS_NAMES, WeightsSource, server_statistics
from deeplabv3.building.assembly import build
from deeplabv3.building.model_file import record_of
from deeplabv3.building.plan import Plan
from deeplabv3.repository.config import config_text, read_config

if TYPE_CHECKING:
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from benchmarks.gpu.settings import Settings
    from benchmarks.harness import Deadline
    from benchmarks.report import Report

_START_SECONDS = 240.0
# One Python process handles some hundreds of requests per second; each has this many in flight.
_REQUESTS_PER_PROCESS = 8
_MAX_PROCESSES = 8
# Above this share of a core, the load generator may limit the throughput.
_BUSY = 0.85


class Setup(NamedTuple):
    """One way to serve.

    Attributes:
        name: in the results.
        batches: whether the core model batches requests; otherwise each runs alone.
        preprocess_device: device that resizes the pictures, "cpu" or "cuda".
        postprocess_device: device that makes the masks, "cpu" or "cuda".
    """

    name: str
    batches: bool = True
    preprocess_device: str = "cpu"
    postprocess_device: str = "cuda"

    @property
    def of_gpus(self) -> bool:
        """Whether it differs from the other setups only on a GPU."""
        return (self.preprocess_device, self.postprocess_device) != ("cpu", "cuda")


DYNAMIC, SINGLY = "dynamic batching", "one request at a time"
SETUPS = (
    Setup(DYNAMIC),
    Setup(SINGLY, batches=False),
    Setup(f"{DYNAMIC}, masks on the CPU", postprocess_device="cpu"),
    Setup(f"{DYNAMIC}, resize on the GPU", preprocess_device="cuda"),
)


def write_model(model: DeepLabV3, variant: str, settings: Settings, file: Path, *, cudnn: str) -> Plan:
    """Write the model.pt that all setups serve, in fp16 on a GPU. The section `bare` has checked its logits."""
    plan = Plan(
        variant,
        WeightsSource("calibrated on noise"),
        VOC_CLASS_NAMES,
        direct=False,
        resnet_options={"width_per_group": settings.width},
        device=settings.device,
        precision="fp16" if settings.on_gpu else "fp32",
        cudnn=cudnn,
    )
    extra = record_of(plan).as_extra_files()
    traced(model, file, precision=plan.precision, device=plan.device, cudnn=cudnn, extra=extra)
    return plan


def write_repository(folder: Path, plan: Plan, setup: Setup, settings: Settings, file: Path) -> Path:
    """Write a complete model repository for one setup, with the configs of build_models.py."""
    version = folder / plan.core / "1"
    version.mkdir(parents=True)
    shutil.copy(file, version / "model.pt")
    size = {"preprocess.resize_size": str(settings.size)}
    devices = {"preprocess": setup.preprocess_device, "postprocess": setup.postprocess_device}
    build(folder, [plan], configs_only=True, step_devices=devices, settings=size)
    if not setup.batches:
        for name in (plan.core, plan.ensemble):
            _serve_singly(folder / name / "config.pbtxt")
    return folder


def _serve_singly(path: Path) -> None:
    """Change a config so that the model runs one request at a time."""
    config = read_config(path)
    config.max_batch_size = 1
    config.ClearField("dynamic_batching")
    kept = [warm_up for warm_up in config.model_warmup if warm_up.batch_size == 1]
    del config.model_warmup[:]
    config.model_warmup.extend(kept)
    path.write_text(config_text(config))


@dataclass(frozen=True, slots=True)
class Served:
    """A model in one setup, its repository, and the picture to send."""

    plan: Plan
    setup: Setup
    repository: Path
    picture: Path


def measure_serving(report: Report, served: Served, settings: Settings, deadline: Deadline) -> None:
    """Measure one setup at each concurrency."""
    plan, setup, repository = served.plan, served.setup, served.repository
    pictures = [Picture(served.picture, repository.with_suffix(".mask"))]
    with (
        Sender(min(_MAX_PROCESSES, max(1, max(settings.concurrencies) // _REQUESTS_PER_PROCESS))) as sender,
        servers.triton(
            repository,
            plan.ensemble,
            pictures,
            # For a tiny model on a CPU, threads cost more than they gain.
            environment=None if settings.on_gpu else {"OMP_NUM_THREADS": "1"},
            start_seconds=min(_START_SECONDS, max(30.0, deadline.left())),
            log=repository.with_suffix(".log"),
        ) as server,
    ):
        url = f"http://{urlsplit(server.wire.url).netloc}"
        report.say(f"{plan.variant}, {setup.name}: ready after {server.start:.0f} s")
        for concurrency in settings.concurrencies:
            condition = {"variant": plan.variant, "in flight": concurrency}
            if not deadline.allows(2 * settings.load_seconds + 5):
                report.skip(f"serving {plan.variant}, {setup.name}, {concurrency} in flight", "no time was left")
                continue
            ramp, end = settings.load_seconds / 3, settings.load_seconds * 4 / 3
            before = server_statistics.read(url)
            processor, began = server.processes.processor_seconds(), time.monotonic()
            replies = sender.run(Load(end, concurrency), server.wire, pictures)
            server_cores = (server.processes.processor_seconds() - processor) / (time.monotonic() - began)
            figures = {
                "rate": replies.throughput_between(ramp, end),
                **{f"p{percent}": replies.percentile(percent / 100) or 0.0 for percent in (50, 95, 99)},
                "failed": float(sum(replies.errors.values())),
                "differing": float(len(replies.differing)),
                "busy": replies.busy,
                "load_share": replies.cores / cores(),
                "server_share": server_cores / cores(),
                "ready": server.start,
            }
            limited = "the load generator may be the limit" if replies.busy > _BUSY else ""
            errors = ", ".join(f"{count} x {status}" for status, count in replies.errors.items())
            report.add(
                "serving", setup.name, {**condition, "cudnn": plan.cudnn}, figures, limited=limited, errors=errors
            )
            report.say(f"{plan.variant}, {setup.name}, {concurrency} in flight: {figures['rate']:.1f} images/s")
            for step, counts in (server_statistics.between(before, server_statistics.read(url)) or {}).items():
                report.add("stages", step, {"setup": setup.name, **condition}, server_statistics.means(counts))
