"""The file of class names, which a build reads and postprocess serves."""

from pathlib import Path

from deeplabv3.errors import RepositoryError


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class name per line, id 0 first; blank lines at the end are ignored.

    Raises:
        RepositoryError: a ValueError. The file cannot be read, has no names, or has an empty, repeated or unprintable
            name. The message does not name the file, because callers know how it was given.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else f"not UTF-8 text ({exc})"
        raise RepositoryError(f"{reason}; give a file with one class name per line") from exc
    if names == [""]:
        raise RepositoryError("the file has no names; give one class name per line")
    for number, name in enumerate(names, start=1):
        if not name.isprintable():
            raise RepositoryError(f"line {number} has characters that cannot be printed: {name!a}; remove them")
        first = names.index(name) + 1
        if not name or first != number:
            fault = f"repeats {name!r} of line {first}" if name else "is empty"
            raise RepositoryError(f"line {number} {fault}; each class needs its own name")
    return tuple(names)
