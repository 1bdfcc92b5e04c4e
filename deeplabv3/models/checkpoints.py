"""Read the state dict of a DeepLabV3 from a checkpoint file, or raise an error that says what the file is."""

import argparse
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from deeplabv3.errors import CheckpointError

COUNTER = "num_batches_tracked"
"""An integer of batch normalization that only training reads; old checkpoints and frozen layers do not have it."""

# Keys under which training scripts store the state dict: torchvision's references, PyTorch Lightning, PyTorch's
# tutorials and others.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net")
_MAX_WRAPPERS = 3
# Parts of keys that come from wrappers of a module or of its parts: DistributedDataParallel, torch.compile, activation
# checkpointing, FullyShardedDataParallel. No part of a DeepLabV3 has such a name.
_WRAPPING_MODULES = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# AveragedModel's counter, beside the averaged weights.
_AVERAGED = "n_averaged"
# A key of every DeepLabV3; a prefix before it is the place of the model, such as `model.` in a LightningModule.
_ANCHOR = "backbone.conv1.weight"

# The number of blocks in a ResNet's third stage, which differs between the variants.
_VARIANTS = {6: "resnet50", 23: "resnet101"}
_RESNETS = {2: "ResNet-18", 6: "ResNet-50", 23: "ResNet-101", 36: "ResNet-152"}

_SERVED = "give a checkpoint of torchvision's deeplabv3_resnet50 or deeplabv3_resnet101"
_AGAIN = "copy or download it again"
_SAVE = "save the model's state_dict() alone with torch.save"
_UNPACK = "unpack it and give the checkpoint inside"

# The first bytes of the files that torch.save wrote before it used ZIP archives.
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
# A pattern for the start of a file, the kind of file, and the remedy; the first match counts.
_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\Z", "empty", _AGAIN),
    (rb"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (rb"\x80", "a Python pickle, which could run code", _SAVE),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes it", _SERVED),
    (rb"\x93NUMPY", "a NumPy array", _SAVE),
    (rb"GGUF", "a GGUF file", _SERVED),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|(?s:.{257})ustar", "a packed archive", _UNPACK),
    (
        rb"(?s:.{4})\0{4}\{[\"}]",
        "a safetensors file",
        "read it with safetensors.torch.load_file and torch.save the result",
    ),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", "an ONNX model", _SERVED),
    (rb"(?is)(\xef\xbb\xbf)?\s*<.*html", "an HTML page", "download the checkpoint itself"),
    (rb"(\xef\xbb\xbf)?\s*<", "an XML file", _SERVED),
    (rb"(\xef\xbb\xbf)?\s*[{\[]", "JSON text", "download the checkpoint itself"),
    (rb"[\t\n\r -~]*\Z", "a text file", "download the checkpoint itself"),
    (rb"", "in an unknown format", f"{_AGAIN}, or {_SAVE}"),
)
# For ZIP archives, the format of torch.save: a pattern for a name inside, the kind of file, and the remedy.
_ARCHIVES: tuple[tuple[str, str, str], ...] = (
    (r"/extra/build\.json$", "a model.pt of build_models.py", "give the checkpoint that it was built from"),
    (r"/constants\.pkl$", "a TorchScript archive", "save the state_dict() of the model that it was made from"),
    (r"/archive_format$", "an archive of torch.export", "save the state_dict() of the model that it was made from"),
    (r"\.npy$", "a NumPy archive", _SAVE),
    (r"\.(pth?|ckpt|bin|safetensors)$", "a ZIP archive", _UNPACK),
)

# Patterns for keys of a state dict, and the model that has them.
_OTHER_MODELS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"classifier\.(cbr|low_classifier)\.",), "an LR-ASPP (lraspp_mobilenet_v3_large)"),
    ((r"backbone\.\d+\.", r"classifier\.0\.convs\."), "a DeepLabV3 with a MobileNet (deeplabv3_mobilenet_v3_large)"),
    ((r"backbone\.body\.",), "a detector of torchvision"),
    ((r"decode_head\.",), "a model of MMSegmentation"),
    ((r"segmentation_head\.",), "a model of segmentation_models_pytorch"),
)

_log = logging.getLogger("build_models")


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a file of torch.save, with the keys of torchvision's DeepLabV3; never run code in it.

    Raises:
        CheckpointError: a ValueError. The file is not a checkpoint, or is one of another model.
        OSError: the file cannot be read.
    """
    _check_format(path)
    state = _unwrapped(_state_dict(_load(path), path), path)
    for key, value in state.items():
        dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
        if not dense or not (value.is_floating_point() or key.endswith(COUNTER)):
            raise CheckpointError(
                f"{path}: {key} is {value.dtype}, {value.layout} on {value.device.type}, but only dense floating-point "
                f"tensors can be loaded; {_SAVE}"
            )
    if other := _other_model(state):
        raise CheckpointError(f"{path} holds {other}; {_SERVED}")
    return _with_fitting_head(state, path)


def variant_of(keys: Iterable[str]) -> str | None:
    """Return the variant of a state dict by its keys, or None if they do not show it."""
    return _VARIANTS.get(_blocks(keys))


def _check_format(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(_LEGACY):
        return
    if head.startswith(b"PK"):
        found = _archive(path)
    else:
        found = next((name, remedy) for start, name, remedy in _FORMATS if re.match(start, head))
    if found:
        raise CheckpointError(f"{path} is {found[0]}, not a checkpoint of torch.save; {found[1]}")


def _archive(path: Path) -> tuple[str, str] | None:
    """Return the kind of a ZIP archive and the remedy, or None for a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return f"a truncated or damaged archive of {path.stat().st_size:,} bytes", _AGAIN
    for pattern, name, remedy in _ARCHIVES:
        if any(re.search(pattern, each) for each in names):
            return name, remedy
    if any(name.endswith("/data.pkl") for name in names):
        return None
    return "a ZIP archive", _SAVE


def _load(path: Path) -> object:
    try:
        # torchvision's reference training also stores its command line, which is not code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about sparse tensors, which are refused later
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch's unpickler raises any type, and its messages advise to trust the file
        if not isinstance(exc, pickle.UnpicklingError):
            raise CheckpointError(f"{path} is truncated or damaged; {_AGAIN}") from exc
        found = "an object"
        if refused := re.search(r"GLOBAL ([\w.]+)", str(exc)):
            whole = refused[1].startswith(("torch.nn.", "torchvision.models.", "torch.fx."))
            found = f"{'a whole model' if whole else 'an object'} of the class {refused[1]}"
        raise CheckpointError(f"{path} holds {found}, which is not loaded because it could run code; {_SAVE}") from exc


def _state_dict(checkpoint: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint, at the top level or under one of _WRAPPERS."""
    found = checkpoint
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(found, dict) or _is_state_dict(found):
            break
        inside = [found[name] for name in _WRAPPERS if isinstance(found.get(name), dict)]
        found = next((each for each in inside if _is_state_dict(each)), inside[0] if inside else None)
    if isinstance(found, dict) and _is_state_dict(found):
        return found
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a state dict; {_SAVE}")
    keys, places = shortened(sorted(map(str, checkpoint))), ", ".join(_WRAPPERS)
    if inside := [str(key) for key, each in checkpoint.items() if isinstance(each, dict) and _is_state_dict(each)]:
        raise CheckpointError(
            f"{path} holds a state dict under {shortened(inside)}, but none under {places}; save that state dict alone"
        )
    if any("optim" in str(key) or key == "param_groups" for key in checkpoint):
        raise CheckpointError(f"{path} holds the state of an optimizer ({keys}), not of a model; {_SAVE}")
    raise CheckpointError(
        f"{path} holds no state dict, neither at its top level ({keys or 'empty'}) nor under {places}; {_SAVE}"
    )


def _is_state_dict(found: Mapping[object, object]) -> bool:
    return bool(found) and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items())


def _unwrapped(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return a state dict without the parts of keys that come from wrappers and from modules around the model."""
    plain: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPING_MODULES)
        if name in plain:
            raise CheckpointError(f"{path} has {name} twice, with and without a wrapper's prefix; {_SAVE}")
        if name != _AVERAGED:
            plain[name] = value
    prefixes = sorted(key.removesuffix(_ANCHOR) for key in plain if f".{key}".endswith(f".{_ANCHOR}"))
    if len(prefixes) > 1:
        names = ", ".join(repr(prefix) for prefix in prefixes)
        raise CheckpointError(f"{path} holds {len(prefixes)} models, with the prefixes {names}; {_SAVE}")
    prefix = "".join(prefixes)
    if others := [key for key in plain if not key.startswith(prefix)]:
        _log.info("%s: ignoring keys outside of the model: %s", path, shortened(others))
    return {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}


def _other_model(state: Mapping[str, torch.Tensor]) -> str:
    """Return the model of a state dict if it cannot be served; an empty string if it may be a DeepLabV3."""
    for patterns, name in _OTHER_MODELS:
        if all(_has(state, pattern) for pattern in patterns):
            return name
    if not _has(state, r"layer3\.\d+\."):
        return f"a model other than a DeepLabV3 with a ResNet (keys {shortened(list(state))})"
    if not _has(state, r"backbone\.layer3\."):
        return f"a {_resnet(state)} without the heads of a DeepLabV3"
    if _has(state, r"classifier\.0\.weight$"):
        return f"an FCN (fcn_{variant_of(state) or 'resnet'})"
    return "" if _resnet(state) in {"ResNet-50", "ResNet-101"} else f"a model with a {_resnet(state)}"


def _has(state: Mapping[str, torch.Tensor], pattern: str) -> bool:
    return any(re.match(rf"(?:.*\.)?{pattern}", key) for key in state)


def _resnet(state: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the ResNet in a state dict."""
    blocks = _blocks(state)
    if _has(state, r"layer3\.0\.conv2\.weight$") and not _has(state, r"layer3\.0\.conv3\.weight$"):  # basic blocks
        return "ResNet-34" if _RESNETS.get(blocks) == "ResNet-50" else "ResNet-18"
    return _RESNETS.get(blocks, f"ResNet whose third stage has {blocks} blocks")


def _blocks(keys: Iterable[str]) -> int:
    """Return the number of blocks in a ResNet's third stage."""
    found = (re.match(r"(?:.*\.)?layer3\.(\d+)\.", key) for key in keys)
    return len({match[1] for match in found if match})


def _with_fitting_head(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Drop an auxiliary head with other classes, because fine-tuning often replaces only the classifier."""
    main, auxiliary = (state.get(f"{head}.4.bias") for head in ("classifier", "aux_classifier"))
    if main is None or auxiliary is None or main.shape == auxiliary.shape:
        return state
    _log.info(
        "%s: ignoring aux_classifier, because it has %d classes and the classifier has %d",
        path,
        auxiliary.numel(),
        main.numel(),
    )
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """Return names in one line; names beyond the limit are only counted."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
