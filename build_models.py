"""Build the Triton model repository: trace DeepLabV3 to TorchScript, check it against PyTorch, put it in place.

    python build_models.py                      both variants, weights COCO_WITH_VOC_LABELS_V1
    python build_models.py --variant resnet50 --weights checkpoint.pth
    python build_models.py --weights none       untrained: for a machine that cannot download the weights

A build that fails or is interrupted leaves the model that was there before as it was.
"""

import argparse
import contextlib
import copy
import fcntl
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.parse
import warnings
import zipfile
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torchvision
from google.protobuf import text_format
from google.protobuf.message import Message
from torch import nn
from torch.nn import functional
from torchvision.models import WeightsEnum, get_model, get_model_weights
from torchvision.models.segmentation.deeplabv3 import DeepLabV3
from tritonclient.grpc import model_config_pb2

pb: Any = model_config_pb2  # generated at import, without types

MODEL_REPOSITORY = Path(__file__).resolve().parent / "model_repository"

# What the repository serves ---------------------------------------------------------------------------------------

VARIANTS = ("resnet50", "resnet101")
PRETRAINED = "COCO_WITH_VOC_LABELS_V1"
UNTRAINED = "none"

# Both variants have one list of classes, and the models behind them share it: 20 of Pascal VOC and the background.
CLASS_NAMES: tuple[str, ...] = tuple(get_model_weights("deeplabv3_resnet50")[PRETRAINED].meta["categories"])

MAX_BATCH_SIZE = 8
TRAINED_SIZE = 520

# The saved file runs once more at another batch size and a shape that is not square and no multiple of the stride.
VERIFY_SHAPE = (2, 3, 299, 421)
# Largest accepted |traced - eager| of any logit, for logits of order 1; it grows with the largest logit. Folding the
# batch normalisation and channels-last sums change the order of float32 additions: 2e-5 is what that costs.
TOLERANCE = 1e-4

# Models that are no product of this script; a repository built elsewhere gets a copy.
_STATIC_MODELS = ("preprocess", "postprocess", "encode_mask")
_LABELS = Path("postprocess", "labels.txt")

# Any seed would do; with this one nobody takes the masks of the demo's cat for a success.
_UNTRAINED_SEED = 5
# Room for the larger variant, 234 MB.
_SAVE_BYTES = 260_000_000
_DOWNLOAD_TIMEOUT_SECONDS = 30.0

EXIT_FAILED = 1
EXIT_WEIGHTS_UNAVAILABLE = 3

_log = logging.getLogger("build_models")


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


class WeightsUnavailableError(BuildError):
    """The pretrained weights could not be downloaded."""


# Weights -> PyTorch model -----------------------------------------------------------------------------------------


def weights_label(weights: str) -> str:
    """Return what the model's config says of its weights: the argument, or a file's name and the start of its SHA-256.

    Raises:
        BuildError: neither a known name nor a readable file.
    """
    if weights in {PRETRAINED, UNTRAINED}:
        return weights
    path = Path(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if sys.version_info >= (3, 11) else hashlib.sha256(file.read())
    except OSError as exc:
        raise BuildError(
            f"--weights {weights}: {exc.strerror}; give {PRETRAINED}, a checkpoint file, or {UNTRAINED}"
        ) from exc
    # The label goes into a protobuf, which takes UTF-8 only.
    name = path.name.encode("utf-8", "replace").decode("utf-8")
    return f"{name}@sha256:{digest.hexdigest()[:16]}"


def load_model(variant: str, weights: str, *, progress: bool = True) -> DeepLabV3:
    """Return torchvision's DeepLabV3 with its auxiliary head, in eval mode.

    Args:
        variant: one of VARIANTS.
        weights: PRETRAINED, a path of a checkpoint in torchvision's format, or UNTRAINED for reproducible noise.
        progress: show the download's progress on stderr.

    Raises:
        WeightsUnavailableError: the download failed.
        BuildError: the checkpoint does not fit.
    """
    name = f"deeplabv3_{variant}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        # Always with the head: dropping it afterwards leaves every other weight as it is, trained or not.
        model = get_model(name, weights=None, weights_backbone=None, num_classes=len(CLASS_NAMES), aux_loss=True)
    if not isinstance(model, DeepLabV3):
        raise TypeError(f"torchvision's {name} is a {type(model).__name__}")
    if weights == PRETRAINED:
        _load_state(model, _download(get_model_weights(name)[PRETRAINED], progress=progress), PRETRAINED)
    elif weights != UNTRAINED:
        _load_state(model, _read_checkpoint(Path(weights)), weights)
    return model.eval()


def _download(weights: WeightsEnum, *, progress: bool) -> dict[str, torch.Tensor]:
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cached = cache / Path(urllib.parse.urlparse(weights.url).path).name
    remedy = (
        f"Put the file at {cached}, or pass --weights FILE with a checkpoint of yours, or --weights {UNTRAINED} for an "
        "untrained model, whose masks mean nothing"
    )
    try:
        if cached.exists():
            _check_hash(cached)
        # torch announces a download on stdout.
        with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS), contextlib.redirect_stdout(sys.stderr):
            return weights.get_state_dict(progress=progress, check_hash=True, weights_only=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as exc:
        raise WeightsUnavailableError(f"the weights at {weights.url} could not be downloaded: {exc}. {remedy}") from exc
    except (RuntimeError, OSError, pickle.UnpicklingError) as exc:
        raise WeightsUnavailableError(f"the weights at {weights.url} could not be used: {exc}. {remedy}") from exc


def _check_hash(cached: Path) -> None:
    """Check a cached file against the start of its SHA-256 in its name; torch does so only after a download."""
    expected = cached.stem.rpartition("-")[2]
    actual = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not actual.startswith(expected):
        raise OSError(f"{cached} is damaged (SHA-256 {actual[:8]}..., expected {expected}...); delete it")


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Generator[None]:
    """Bound how long torch's downloader, which sets no timeout, waits for one read."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a plain state dict, or the one under "model" as torchvision's reference training writes it."""
    try:
        checkpoint: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        raise BuildError(f"--weights {path} cannot be read: {exc.strerror}") from exc
    except Exception as exc:  # torch's unpickler raises what it trips over; its advice, to trust the file, is not ours
        raise BuildError(
            f"--weights {path} is no checkpoint of torch.save, or holds more than tensors, which is never loaded"
        ) from exc
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), dict):
        checkpoint = checkpoint["model"]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in checkpoint.items()
    ):
        raise BuildError(f'--weights {path} holds no state dict, neither at its top level nor under "model"')
    for key, value in checkpoint.items():
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type != "cpu":
            raise BuildError(
                f"--weights {path}: {key} is {value.dtype}, {value.layout} on {value.device.type}; only dense real "
                "numbers can be loaded"
            )
    return checkpoint


def _load_state(model: DeepLabV3, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict; name every key that is missing, unexpected or of another shape in one error.

    A checkpoint without the auxiliary head is taken: the head is then absent from the model too.
    """
    if not any(key.startswith("aux_classifier.") for key in state):
        model.aux_classifier = None
    expected = model.state_dict()
    # Old checkpoints lack this counter, which only training reads.
    missing = sorted(key for key in expected.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = [f"{len(keys)} {kind} ({_shortened(keys)})" for kind, keys in problems.items() if keys]
    if found:
        raise BuildError(f"the weights {source} do not fit DeepLabV3: keys {'; '.join(found)}")
    model.load_state_dict(state, strict=False)


def _shortened(keys: Sequence[str], limit: int = 5) -> str:
    more = f", and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


# PyTorch model -> verified TorchScript file -----------------------------------------------------------------------


class ServedDeepLabV3(nn.Module):
    """DeepLabV3 as it is served: a tuple in the order of the config's outputs.

    The tuple is `out` (N, C, H, W), the logits at the input's size; `logits_os8` (N, C, H/8, W/8 rounded up), the same
    before the last upsampling; and, if asked for, `aux` (N, C, H, W). All float32. Triton's PyTorch backend takes no
    dict, which torchvision's model returns.
    """

    def __init__(self, model: DeepLabV3, *, aux: bool) -> None:
        super().__init__()
        if aux and model.aux_classifier is None:
            raise BuildError("--aux-loss asks for the auxiliary head, and the checkpoint has none")
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.aux_classifier = model.aux_classifier if aux else None

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: A002  the tensor's name on the wire
        """Take (N, 3, H, W) float32, normalised with ImageNet's mean and standard deviation."""
        # The layout is part of the trace: Triton hands over contiguous NCHW, and its backend has no switch for it.
        features = self.backbone(input.contiguous(memory_format=torch.channels_last))
        size = input.shape[-2:]
        logits = self.classifier(features["out"])
        served = (_upsample(logits, size), logits)
        if self.aux_classifier is None:
            return served
        return (*served, _upsample(self.aux_classifier(features["aux"]), size))


def _upsample(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def trace(served: ServedDeepLabV3) -> torch.jit.ScriptModule:
    """Trace on the CPU and freeze: batch normalisation folds into the convolutions.

    Not `optimize_for_inference`: its CPU-only operators would not load on a GPU.
    """
    example = torch.randn(1, 3, TRAINED_SIZE, TRAINED_SIZE, generator=torch.Generator().manual_seed(0))
    served = served.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  no such overload
    with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated and remains what Triton's PyTorch backend serves.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        traced = torch.jit.trace(served, example, check_trace=False)
        return torch.jit.freeze(traced)


def _save(module: torch.jit.ScriptModule, file: Path, extra: dict[str, str]) -> None:
    """Save a module; torch aborts the process when the disk is full, so look before."""
    free = shutil.disk_usage(file.parent).free
    if free < _SAVE_BYTES:
        raise BuildError(f"{file.parent} has {free / 1e6:.0f} MB left, and a model takes up to {_SAVE_BYTES / 1e6:.0f}")
    module.save(str(file), _extra_files=extra)


def verify(file: Path, eager: DeepLabV3, *, aux: bool) -> str:
    """Run a saved file at VERIFY_SHAPE against torchvision's own forward; return how far its logits are off.

    Raises:
        BuildError: another signature, number of outputs or shape, or a difference above TOLERANCE.
    """
    pixels = torch.randn(VERIFY_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(str(file), map_location="cpu")
        arguments = [argument.name for argument in module.forward.schema.arguments]
        if arguments != ["self", "input"]:
            raise BuildError(f"the traced forward takes {arguments}, and config.pbtxt names its tensor 'input'")
        reference = eager(pixels)
        out, logits_os8, *rest = module(pixels)
        pairs = {"out": (out, reference["out"]), "logits_os8": (_upsample(logits_os8, pixels.shape[-2:]), out)}
        if aux:
            pairs["aux"] = (rest[0], reference["aux"])
    findings: list[str] = []
    for name, (served, expected) in pairs.items():
        if served.shape != expected.shape or served.dtype != torch.float32:
            raise BuildError(f"{name} is {served.dtype} {tuple(served.shape)} instead of {tuple(expected.shape)}")
        difference = float((served - expected).abs().max())
        bound = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= bound:
            raise BuildError(f"{name} of the saved file is off PyTorch's by {difference:.2e}, more than {bound:.2e}")
        findings.append(f"{name} {difference:.1e} ({bound:.1e} allowed)")
    return "largest difference from PyTorch: " + ", ".join(findings)


# Configurations ---------------------------------------------------------------------------------------------------


def core_config(variant: str, label: str, *, aux: bool) -> Message:
    """Return the config of deeplabv3_<variant>."""
    config = pb.ModelConfig(name=f"deeplabv3_{variant}", platform="pytorch_libtorch", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name="input", data_type=pb.TYPE_FP32, dims=[3, -1, -1])
    for name in ("out", "logits_os8", "aux") if aux else ("out", "logits_os8"):
        config.output.add(name=name, data_type=pb.TYPE_FP32, dims=[len(CLASS_NAMES), -1, -1])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_AUTO, count=1)
    # No queue delay: while the instance computes, the next batch gathers by itself, and a lone request never waits.
    config.dynamic_batching.SetInParent()
    config.parameters["weights"].string_value = label
    # The first run of the executor finds a wrong output dtype or number, so that a broken file fails at load.
    warmup = config.model_warmup.add(name=f"batch 1 at {TRAINED_SIZE} x {TRAINED_SIZE}", batch_size=1)
    warmup.inputs["input"].data_type = pb.TYPE_FP32
    warmup.inputs["input"].dims.extend([3, TRAINED_SIZE, TRAINED_SIZE])
    warmup.inputs["input"].zero_data = True
    return config


def ensemble_config(variant: str, label: str) -> Message:
    """Return the config of segment_<variant>: image bytes in, mask at the image's own size out."""
    config = pb.ModelConfig(name=f"segment_{variant}", platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.input.add(name="IMAGE", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="MASK", data_type=pb.TYPE_UINT8, dims=[-1, -1])
    config.output.add(name="CLASS_PIXELS", data_type=pb.TYPE_INT64, dims=[len(CLASS_NAMES)])
    config.output.add(name="CLASS_NAMES", data_type=pb.TYPE_STRING, dims=[len(CLASS_NAMES)])
    config.output.add(name="MASK_PNG", data_type=pb.TYPE_STRING, dims=[1])
    steps = {
        "preprocess": ({"IMAGE": "IMAGE"}, {"PIXELS": "PIXELS", "SIZE": "SIZE"}),
        f"deeplabv3_{variant}": ({"input": "PIXELS"}, {"logits_os8": "LOGITS"}),
        "postprocess": (
            {"LOGITS": "LOGITS", "SIZE": "SIZE"},
            {name: name for name in ("MASK", "MASK_FOR_PNG", "CLASS_PIXELS", "CLASS_NAMES")},
        ),
        "encode_mask": ({"MASK": "MASK_FOR_PNG"}, {"MASK_PNG": "MASK_PNG"}),
    }
    for model, (inputs, outputs) in steps.items():
        config.ensemble_scheduling.step.add(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)
    config.parameters["weights"].string_value = label
    return config


def config_text(config: Message) -> str:
    """Return a config.pbtxt."""
    return f"# Written by build_models.py: change it there.\n{text_format.MessageToString(config)}"


# Files in the repository ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """What made a model.pt; it travels inside the file, where Triton ignores it and serve.py reads `weights`."""

    variant: str
    weights: str
    aux: bool
    torch: str
    torchvision: str
    build_models_sha256: str

    FILE = "build.json"

    @classmethod
    def of(cls, variant: str, label: str, *, aux: bool) -> "BuildRecord":
        """Return the record that a build by this very script would leave."""
        source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        return cls(variant, label, aux, torch.__version__, torchvision.__version__, source)

    @classmethod
    def read(cls, file: Path) -> "BuildRecord | None":
        """Return the record inside a model.pt, or None where there is none: no file, a damaged one, another build."""
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return None
                name = next(name for name in archive.namelist() if name.endswith(f"/extra/{cls.FILE}"))
                return cls(**json.loads(archive.read(name)))
        except (OSError, zipfile.BadZipFile, StopIteration, ValueError, TypeError):
            return None


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """Keep a second build away from one model; the lock goes with the process, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise BuildError(f"another build is writing to {directory}; wait for it or stop it") from exc
    finally:
        os.close(descriptor)


def _write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; leave an equal one untouched."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_configs(repository: Path, variant: str, label: str, *, aux: bool) -> None:
    """Write what describes one variant: its two config.pbtxt, the class names, the ensemble's version folder."""
    _write_text(repository / f"deeplabv3_{variant}" / "config.pbtxt", config_text(core_config(variant, label, aux=aux)))
    _write_text(repository / f"segment_{variant}" / "config.pbtxt", config_text(ensemble_config(variant, label)))
    _write_text(repository / f"segment_{variant}" / "1" / ".gitkeep", "")  # Triton wants a version of an ensemble too.
    _write_text(repository / _LABELS, "".join(f"{name}\n" for name in CLASS_NAMES))


def copy_static_models(repository: Path) -> None:
    """Complete a repository that is not the one beside this script; a config.pbtxt that is there stays as it is."""
    if repository.resolve() == MODEL_REPOSITORY:
        return
    for name in _STATIC_MODELS:
        config = repository / name / "config.pbtxt"
        kept = config.read_bytes() if config.exists() else None
        shutil.copytree(
            MODEL_REPOSITORY / name, repository / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        if kept is not None and kept != config.read_bytes():
            _log.info("%s: kept, though it differs from the one beside build_models.py", config)
            config.write_bytes(kept)


def build(repository: Path, variant: str, weights: str, *, aux: bool, force: bool, progress: bool) -> None:
    """Build one variant, unless the model that is there came from the same sources and options."""
    name = f"deeplabv3_{variant}"
    label = weights_label(weights)
    record = BuildRecord.of(variant, label, aux=aux)
    file = repository / name / "1" / "model.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(".model.pt.partial")
    with locked(file.parent):
        partial.unlink(missing_ok=True)  # of a build that was killed
        if not force and BuildRecord.read(file) == record:
            _log.info("%s: up to date (weights %s)", name, label)
        else:
            _log.info("%s: loading weights %s", name, label)
            model = load_model(variant, weights, progress=progress)
            try:
                _log.info("%s: tracing at %d x %d", name, TRAINED_SIZE, TRAINED_SIZE)
                # A copy: channels-last and freezing must not touch the model that the file is checked against.
                served = ServedDeepLabV3(copy.deepcopy(model), aux=aux)
                extra = {BuildRecord.FILE: json.dumps(asdict(record), indent=2)}
                _save(trace(served), partial, extra)
                _log.info("%s: checking the saved file against PyTorch at %s", name, "x".join(map(str, VERIFY_SHAPE)))
                findings = verify(partial, model, aux=aux)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
            megabytes = file.stat().st_size / 1e6
            _log.info("%s: done, %.0f MB; %s", name, megabytes, findings)
        write_configs(repository, variant, label, aux=aux)


# Command line -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Build the Triton model repository of DeepLabV3.")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: both; may be repeated")
    parser.add_argument(
        "--weights",
        default=PRETRAINED,
        metavar=f"{PRETRAINED}|FILE|{UNTRAINED}",
        help="pretrained weights by name, a checkpoint, or none for untrained ones (default: %(default)s)",
    )
    parser.add_argument("--aux-loss", action="store_true", help="serve the auxiliary head's output `aux` too")
    parser.add_argument(
        "--model-repository", type=Path, default=MODEL_REPOSITORY, metavar="DIR", help="where to build (default: here)"
    )
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    parser.add_argument("--configs-only", action="store_true", help="write the config files and build nothing")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar for the download")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 (failed), 3 (the weights could not be downloaded)."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    repository: Path = options.model_repository
    try:
        copy_static_models(repository)
        for variant in options.variant or VARIANTS:
            if options.configs_only:
                write_configs(repository, variant, weights_label(options.weights), aux=options.aux_loss)
            else:
                build(
                    repository,
                    variant,
                    options.weights,
                    aux=options.aux_loss,
                    force=options.force,
                    progress=options.progress,
                )
    except WeightsUnavailableError as exc:
        _log.error("build_models.py: %s", exc)
        return EXIT_WEIGHTS_UNAVAILABLE
    except (BuildError, OSError) as exc:
        _log.error("build_models.py: %s", exc)
        return EXIT_FAILED
    except KeyboardInterrupt:
        _log.error("build_models.py: interrupted; the models that were there are as they were")
        return 128 + signal.SIGINT
    return 0


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    """Unwind on SIGTERM, so that the partial file goes."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
