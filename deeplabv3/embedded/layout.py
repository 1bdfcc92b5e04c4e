"""The files and variables of a server: its backends, its environment, and links with plain names to other folders.

tritonserver starts its stubs with `bash -c` and unquoted paths, the dynamic loader splits paths at colons, and the
Python in a stub reads `*.pth` files as ASCII in any locale and fails on others.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import joblib

from deeplabv3.embedded.checks import STUB, libpython_folder, stub_of
from deeplabv3.embedded.errors import StartError

PYTORCH_BACKEND = Path(__file__).resolve().with_name("pytorch_backend")
PLAIN = re.compile(r"[A-Za-z0-9_@%+=,./-]+")
# Variables for the server and its stubs, in addition to OMP_NUM_THREADS: OpenMP counts the available cores, but ignores
# a container's CPU quota. With a thread per core of the machine, all threads would mostly wait for the next period.
TUNING = {
    # Otherwise waiting threads spin on the cores that the other steps need.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Tensors have some megabytes. By default malloc returns such blocks to the kernel, which has to clear others for
    # the next request. These values keep up to 128 MiB per process; glibc accepts at most 32 MiB for the first.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


def plain(path: Path, link: Path) -> Path:
    """Return the path if its name is plain, else a new link to it."""
    if PLAIN.fullmatch(str(path)):
        return path
    link.symlink_to(path)
    return link


def backend_directory(work: Path, server: Path) -> Path:
    """Create the folder of the backends: python from the wheel, pytorch from this repository."""
    python = work / "backends" / "python"
    # Copies, because tritonserver refuses a library of a Python-based backend that resolves to another folder. pip
    # leaves a __pycache__ there.
    shutil.copytree(server / "backends" / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    stub = stub_of(server)
    if stub.stat().st_mode & 0o555 != 0o555:  # noqa: PLR2004 - all may read and execute
        # The wheel's stub is not readable, and the kernel shows details of such a process only to root: then no stub
        # ever looks idle, and a stop takes DRAIN_SECONDS.
        with contextlib.suppress(OSError):
            stub.chmod(0o755)
    if os.access(stub, os.X_OK):
        (python / STUB).symlink_to(stub)
    else:
        shutil.copy(stub, python / STUB)
        (python / STUB).chmod(0o755)
    shutil.copytree(PYTORCH_BACKEND, work / "backends" / "pytorch")
    return work / "backends"


def python_folder(work: Path) -> Path:
    """Return the folder of the `python3` that must be first on PATH, so that the stubs find its packages."""
    folders = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    unreadable = {path for folder in folders for path in folder.glob("*.pth") if not path.read_bytes().isascii()}
    if not unreadable and all(map(PLAIN.fullmatch, (sys.executable, sys.prefix, sys.base_prefix))):
        return Path(sys.executable).parent
    # A separate environment with everything of ours except those files.
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


def environment(server: Path, work: Path) -> dict[str, str]:
    """Return our environment with the wheel's libraries, libpython and the running interpreter first.

    The variables of TUNING are added unless they are set already.

    Args:
        server: the wheel's tritonserver folder.
        work: a folder for links to folders whose names are not plain.

    Raises:
        StartError: bash, which starts the Python models, is missing.
    """
    libraries = [plain(server.parents[1] / "nvidia_pytriton.libs", work / "libraries")]
    libraries += [plain(libpython_folder(), work / "libpython")]
    paths = {
        "LD_LIBRARY_PATH": [*libraries, os.environ.get("LD_LIBRARY_PATH")],
        "PATH": [python_folder(work), os.environ.get("PATH"), os.defpath],
    }
    joined = {name: os.pathsep.join(map(str, filter(None, parts))) for name, parts in paths.items()}
    if shutil.which("bash", path=joined["PATH"]) is None:
        raise StartError(f"bash, which starts the Python models, is not on PATH ({joined['PATH']}); install it")
    ours = {
        name: value for name, value in os.environ.items() if name != "BASH_ENV"
    }  # each start of a stub would run it
    return {"OMP_NUM_THREADS": str(joblib.cpu_count())} | TUNING | ours | joined
