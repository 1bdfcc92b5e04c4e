"""The folder that a server starts from: its backends, and links with plain names to what may have any.

tritonserver starts its stubs by `bash -c` with unquoted paths, the loader takes a colon for the end of one, and the
Python in a stub reads `*.pth` files as ASCII, whatever the locale is, and dies of others.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from embedded.checks import STUB, stub_of

ROOT = Path(__file__).resolve().parents[1]
PLAIN = re.compile(r"[A-Za-z0-9_@%+=,./-]+")


def plain(path: Path, link: Path) -> Path:
    """Return a path itself where its name is plain, else a link to it, which is made."""
    if PLAIN.fullmatch(str(path)):
        return path
    link.symlink_to(path)
    return link


def backend_directory(work: Path, server: Path) -> Path:
    """Lay out the backends as tritonserver wants them: python from the wheel, pytorch from this repository."""
    python = work / "backends" / "python"
    # Copies: for a Python-based backend tritonserver refuses a library that resolves to another folder. pip leaves a
    # __pycache__ beside it.
    shutil.copytree(server / "backends" / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    stub = stub_of(server)
    if stub.stat().st_mode & 0o555 != 0o555:  # noqa: PLR2004 - all may read and execute
        # The wheel's may not be read, and the kernel shows of what runs an unreadable file nothing, but to root: then
        # no stub is ever seen at rest, and a stop takes DRAIN_SECONDS.
        with contextlib.suppress(OSError):
            stub.chmod(0o755)
    if os.access(stub, os.X_OK):
        (python / STUB).symlink_to(stub)
    else:
        shutil.copy(stub, python / STUB)
        (python / STUB).chmod(0o755)
    shutil.copytree(ROOT / "backends" / "pytorch", work / "backends" / "pytorch")
    return work / "backends"


def python_folder(work: Path) -> Path:
    """Return the folder with the `python3` whose packages the stubs take when it comes first on PATH."""
    folders = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    unreadable = {path for folder in folders for path in folder.glob("*.pth") if not path.read_bytes().isascii()}
    if not unreadable and all(map(PLAIN.fullmatch, (sys.executable, sys.prefix, sys.base_prefix))):
        return Path(sys.executable).parent
    # An environment of their own, with everything in ours but those files.
    home, base = work / "python", plain(Path(sys.base_prefix), work / "base")
    packages = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(sys.executable)
    (home / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\n", encoding="ascii")
    for folder in folders:
        for entry in folder.iterdir():
            if entry not in unreadable:
                (packages / entry.name).symlink_to(entry)
    return home / "bin"
