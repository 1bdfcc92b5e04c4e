"""Run a command as in a strict container: user and group 1000, a read-only root, no capabilities, no way to get any.

    unshare --user --map-root-user --mount --propagation private python confined.py [--keep FOLDER ...] -- COMMAND ...

Only /tmp and /dev/shm can be written, and are empty. `--keep` shows a folder that would be hidden by that, read-only.
SIGTERM goes to the command. What it leaves is printed at the end, as a JSON list; the exit code is the command's.

/proc is as in a container: writable for what belongs to a process, read-only where it is the machine's.

Files of who starts this belong to the confined user, so that it is the read-only root that keeps them from being
changed, and an interpreter in a folder of root's can be used.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

WRITABLE = (Path("/tmp"), Path("/dev/shm"))  # noqa: S108 - what the test is about
# Paths of /proc that are read-only in containers.
MACHINE = tuple(Path("/proc", name) for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"))
USER = 1000
# <linux/fcntl.h>, <linux/mount.h>, and the number of mount_setattr(2), for which glibc has a function from 2.36 on.
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MS_BIND, SYS_MOUNT_SETATTR = -100, 0x8000, 1, 4096, 442

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise the error of a failed call of the C library."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def change(path: str, flags: int, *, read_only: bool) -> None:
    """Make a mount, or with AT_RECURSIVE all below it, read-only or writable."""
    sets, clears = (MOUNT_ATTR_RDONLY, 0) if read_only else (0, MOUNT_ATTR_RDONLY)
    attributes = struct.pack("QQQQ", sets, clears, 0, 0)
    done = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))
    checked(done, f"{path} {read_only=}")


def confine(keep: list[Path]) -> None:
    """Make all mounts read-only, and /tmp and /dev/shm empty and writable."""
    hidden = [path for path in keep if any(path.is_relative_to(folder) for folder in WRITABLE)]
    sources = [os.open(path, os.O_PATH) for path in hidden]
    change("/", AT_RECURSIVE, read_only=True)
    for path in filter(Path.exists, MACHINE):
        checked(libc.mount(bytes(path), bytes(path), None, MS_BIND, None), f"{path} on itself")
    change("/proc", 0, read_only=False)
    for folder in WRITABLE:
        checked(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"mode=1777"), f"tmpfs on {folder}")
    for path, source in zip(hidden, sources, strict=True):
        path.mkdir(parents=True, exist_ok=True)  # one may lie below another
        checked(libc.mount(f"/proc/self/fd/{source}".encode(), bytes(path), None, MS_BIND, None), f"{path} on itself")


def run(command: list[str]) -> int:
    """Run the command without privileges and return its exit code."""
    # In a new user namespace, because in ours the command would own the mounts and could undo them.
    user = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}", "--keep-caps"]
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    process = subprocess.Popen([*user, *bare, *command])

    def pass_on(_number: int, _frame: object) -> None:
        process.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    return process.wait()


def left(keep: list[Path]) -> list[str]:
    """Return the content of the writable folders, without what was there at the start."""
    return [
        str(path)
        for folder in WRITABLE
        for path in folder.rglob("*")
        if not any(path == kept or path in kept.parents or kept in path.parents for kept in keep)
    ]


def main() -> int:
    """Confine the command, run it, and print what it left."""
    parser = argparse.ArgumentParser(description="Run a command as a strict container does.")
    parser.add_argument("--keep", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    keep = [path.resolve() for path in options.keep]
    confine(keep)
    code = run(options.command)
    sys.stdout.write(json.dumps(left(keep)) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
