"""The configs that a build copies: which copy a newer version replaces, and which was edited and stays.

A repository keeps the config.pbtxt of each step a second time, as it was shipped. A copy that is still that one, but
for what a build itself sets in it (the number of classes, where the step runs), is nobody's work.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplabv3.building.configs import TENSORS_OF_CLASSES, parse_config, pb, read_config, with_class_count
from deeplabv3.building.steps import PLACEMENTS, placed, placement
from deeplabv3.errors import BuildError

RECORD = ".config.pbtxt.shipped"
"""The name of the second copy; Triton reads no such file."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What is to become of the config.pbtxt of one step.

    Attributes:
        text: what it is to hold.
        shipped: what is to be kept beside it as what was shipped; None where what is there stays.
        warning: what its owner has to know, or nothing.
    """

    text: str
    shipped: str | None = None
    warning: str = ""


def settle(path: Path, source: Path) -> Copy:
    """Return what a build makes of a step's config.pbtxt, of which another version may have been shipped since.

    Raises:
        BuildError: it was edited, or comes from before there was a record, and lacks tensors that the ensembles need.
    """
    shipped = source.read_text(encoding="utf-8")
    if not path.exists() or not path.stat().st_size:
        return Copy(shipped, shipped)
    found, text = read_config(path), path.read_text(encoding="utf-8")
    new = _adapted(shipped, step=path.parent.name, like=found)
    before = _recorded(path)
    if text == new or (before is not None and text == _adapted(before, step=path.parent.name, like=found)):
        return Copy(new, shipped)
    if misfits := _misfits(found, parse_config(new)):
        raise BuildError(
            f"{path} does not have the tensors that the ensembles need ({'; '.join(misfits)}): it was edited, or is of "
            "an older version. Move it away, build again, and make your changes in the new file"
        )
    if before is not None and _same(before, shipped, step=path.parent.name):
        return Copy(text)
    return Copy(
        text,
        warning=f"{path} stays, for it was edited or is of an older version; this version ships another, {source}. To "
        "take that one, move yours away, build again, and make your changes in the new file",
    )


def _adapted(text: str, *, step: str, like: Any) -> str:  # noqa: ANN401  a protobuf message: tritonclient has no types
    """Return a shipped config with what a build has set in another one of the same step."""
    counts = [tensor.dims[0] for tensor in like.input if tensor.name in TENSORS_OF_CLASSES and tensor.dims]
    if counts:
        text = with_class_count(text, counts[0])
    where = placement(like)
    if where is None or step not in PLACEMENTS:
        return text
    with contextlib.suppress(BuildError):  # then the other one was edited
        return placed(text, where)
    return text


def _recorded(path: Path) -> str | None:
    """Return what was shipped where path is, or None where that is not known."""
    record = path.with_name(RECORD)
    try:
        read_config(record)
        return record.read_text(encoding="utf-8")
    except (FileNotFoundError, BuildError):
        return None


def _same(before: str, shipped: str, *, step: str) -> bool:
    """Tell whether two shipped configs say the same, whatever was set by builds in the folder that they came from."""
    old = parse_config(before)
    return old == parse_config(_adapted(shipped, step=step, like=old))


def _misfits(found: Any, shipped: Any) -> list[str]:  # noqa: ANN401  protobuf messages
    """Return in words what a config lacks of the tensors of the shipped one, or asks for beyond them."""
    misfits: list[str] = []
    for kind in ("input", "output"):
        have = {tensor.name: tensor for tensor in getattr(found, kind)}
        need = {tensor.name: tensor for tensor in getattr(shipped, kind)}
        misfits += [f"no {kind} {name}" for name in need.keys() - have.keys()]
        misfits += [
            f"{kind} {name} is {_type(have[name])}, not {_type(need[name])}"
            for name in need.keys() & have.keys()
            if not _fits(have[name], need[name])
        ]
        if kind == "input":
            misfits += [f"nobody gives {kind} {name}" for name in have.keys() - need.keys() if not have[name].optional]
    return sorted(misfits)


def _fits(have: Any, need: Any) -> bool:  # noqa: ANN401
    # A build sets the number of classes; a size that one of the two leaves open fits any.
    first = 1 if need.name in TENSORS_OF_CLASSES else 0
    sizes = list(zip(have.dims, need.dims, strict=False))[first:]
    return (
        have.data_type == need.data_type
        and len(have.dims) == len(need.dims)
        and all(mine == its or -1 in (mine, its) for mine, its in sizes)
    )


def _type(tensor: Any) -> str:  # noqa: ANN401
    return f"{pb.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
