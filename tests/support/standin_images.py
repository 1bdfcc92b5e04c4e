"""Stand-ins for images of a registry: Debian's Python, and NVIDIA's Triton with the wheel's server.

Debian is made once by debootstrap. What NVIDIA's image has and the wheel has not is missed: the libtorch backend, for
which ours in Python stands, CUDA, and everything that Triton has learned since 2.51.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3.embedded import checks, layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from container_engine import Engine

CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
PACKAGES = "busybox,ca-certificates,curl,libpython3.11,procps,python3,python3-pip,python3-venv"
PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# 2.51 ends at once if an option is unknown.
TRITONSERVER = """#!/bin/bash
for option; do
    shift
    case $option in
        --grpc-infer-thread-count=* | --http-max-input-size=*) ;;
        *) set -- "$@" "$option" ;;
    esac
done
export LD_LIBRARY_PATH=/opt/tritonserver/lib
exec /opt/tritonserver/bin/tritonserver --backend-directory=/opt/tritonserver/backends "$@"
"""
# Like NVIDIA's: each start of bash runs a slow script, and the entry point executes its arguments.
BASHRC = "sleep 2\n"
ENTRYPOINT = """#!/bin/bash
export STANDIN_ENTRYPOINT=passed
exec "$@"
"""


def debian(folder: Path) -> Path:
    """Return a Debian with Python, created if needed; it trusts the certificate authorities of this machine."""
    root = folder / "debian"
    if not root.exists():
        partial = folder / "debian.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        assert shutil.which("debootstrap"), "debootstrap not found; apt-get install debootstrap"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", partial],  # noqa: S607 - wherever it is
            check=True,
            capture_output=True,
        )
        shutil.rmtree(partial / "var" / "cache" / "apt")
        shutil.copy("/" / CERTIFICATES, partial / CERTIFICATES)
        partial.rename(root)
    return root


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def tritonserver(folder: Path, root: Path) -> None:
    """Write the parts of NVIDIA's image that Ubuntu does not have into a folder."""
    server = checks.check_environment()
    triton = folder / "opt" / "tritonserver"
    (triton / "bin").mkdir(parents=True)
    shutil.copy(server / "bin" / "tritonserver", triton / "bin")
    shutil.copytree(server.parents[1] / "nvidia_pytriton.libs", triton / "lib")
    shutil.copytree(server / "backends" / "python", triton / "backends" / "python")
    shutil.copytree(layout.PYTORCH_BACKEND, triton / "backends" / "pytorch")
    stub = triton / "backends" / "python" / checks.STUB
    shutil.copy(server / "python_backend_stubs" / "3.11" / checks.STUB, stub)
    stub.chmod(0o755)
    write(folder / "usr" / "local" / "bin" / "tritonserver", TRITONSERVER, 0o755)
    write(folder / "opt" / "nvidia" / "nvidia_entrypoint.sh", ENTRYPOINT, 0o755)
    write(folder / "etc" / "standin.bashrc", BASHRC)
    for name, line in (
        ("passwd", "triton-server:x:1000:1000::/home/triton-server:/bin/bash\n"),
        ("group", "triton-server:x:1000:\n"),
    ):
        write(folder / "etc" / name, (root / "etc" / name).read_text() + line)


def imported(engine: Engine, name: str, root: Path, layer: Path, changes: Sequence[str]) -> str:
    """Return the tag of an image of Debian plus a folder; build it unless the engine has it."""
    digest = hashlib.sha256("".join(changes).encode())
    for path in sorted(layer.rglob("*")):
        digest.update(str(path.relative_to(layer)).encode() + (path.read_bytes() if path.is_file() else b""))
    # An image that existed before keeps the images that were built from it valid.
    digest.update(str(root.stat().st_mtime_ns).encode())
    tag = f"{name}:{digest.hexdigest()[:12]}"
    if "No such image" in engine.docker("image", "inspect", tag, check=False):
        options = [word for change in (PATH, *changes) for word in ("--change", change)]
        layer.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=root.parent) as image:
            subprocess.run(["cp", "--archive", "--link", f"{root}/.", image], check=True)  # noqa: S607 - wherever it is
            subprocess.run(["cp", "--archive", "--remove-destination", f"{layer}/.", image], check=True)  # noqa: S607 - wherever it is
            packed = ["tar", "--create", "--directory", image, "."]
            with subprocess.Popen(packed, stdout=subprocess.PIPE) as files:
                engine.docker("import", *options, "-", tag, stdin=files.stdout)
            assert files.returncode == 0
    return tag


def triton(engine: Engine, folder: Path, work: Path) -> str:
    """Return the tag of the stand-in for NVIDIA's image."""
    root = debian(folder)
    tritonserver(work, root)
    changes = ['ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]', "ENV BASH_ENV=/etc/standin.bashrc"]
    return imported(engine, "standin/tritonserver", root, work, changes)


def python(engine: Engine, folder: Path, work: Path) -> str:
    """Return the tag of the stand-in for the image of Python."""
    return imported(engine, "standin/python", debian(folder), work, ['CMD ["python3"]'])


def prometheus(engine: Engine, folder: Path, work: Path, program: Path) -> str:
    """Return the tag of an image with this machine's Prometheus, which runs like the official one."""
    programs = work / "usr" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(program, programs / "prometheus")
    (programs / "wget").symlink_to("busybox")
    # A new volume gets the owner of the folder that it is mounted on.
    (work / "prometheus").mkdir()
    os.chown(work / "prometheus", 65534, 65534)
    return imported(engine, "standin/prometheus", debian(folder), work, ['ENTRYPOINT ["/bin/prometheus"]'])
