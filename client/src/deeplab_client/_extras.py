"""What is told to those who lack an optional dependency."""

from __future__ import annotations


def missing(what: str, module: str, extra: str) -> ModuleNotFoundError:
    """Return the error that names the package and the extra which brings it."""
    message = f"{what} needs {module}: pip install 'deeplab-client[{extra}]', or {module} itself"
    return ModuleNotFoundError(message, name=module)
