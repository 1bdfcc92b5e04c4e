"""Limits that a server inherits: the stack of its threads, open files, and the space in /dev/shm."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplabv3.embedded.processes import SHARED_MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The largest body that a caller needs: 50 megapixels as PPM. deploy/envoy and the container's --http-max-input-size
# refuse larger bodies; tritonserver 2.51 has no limit of its own.
LARGEST_REQUEST_BYTES = 160 << 20
# tritonserver's HTTP library uses this much of a thread's stack per byte of a body (measured on 2.51): 2 bytes if it is
# form-encoded, 2.7 if it comes in chunks of one byte, and 80 if each byte opens a JSON array. 12 are enough for the
# first two up to the largest request, and for any JSON up to a tenth of it. At the start of a program glibc uses the
# limit for the stacks of all its threads. They cost only address space until they are used, but the kernel refuses one
# that is larger than the machine's memory.
STACK_BYTES = 12 * LARGEST_REQUEST_BYTES
FEW_FILES = 1024

# The memory of an instance of a Python model in /dev/shm, whatever the pictures: its region at the start, and the
# tensors of one picture at the core models' size. The tensors of direct callers, 26 MB for 520 x 520, come on top.
INSTANCE_BYTES = 3 << 20
# And per pixel of the picture (measured): the picture as PPM, the encoding of arrays; MASK and MASK_FOR_PNG; the mask
# once more; CONFIDENCE.
PIXEL_BYTES = {"preprocess": 3, "postprocess": 2, "encode_mask": 1, "confidence": 1}


def raise_limits() -> Iterator[str]:
    """Raise the limits that tritonserver inherits from this process; yield a warning for each that stays too low."""
    yield from raise_stack()
    yield from raise_open_files()


def raise_stack() -> Iterator[str]:
    """Raise the stack limit of the server's threads for the largest request; yield a warning if it stays too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        remedy = "remove the limit on the address space (`ulimit -v`)"
    elif strict_overcommit():
        remedy = "set vm.overcommit_memory to 0 instead of 2, with which unused stacks count as memory"
    else:
        remedy = f"raise `ulimit -Hs` to {STACK_BYTES >> 10}"
        wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
        if soft == resource.RLIM_INFINITY or soft < wanted:  # without a limit, threads get 2 MiB
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
            soft = wanted
    stack = 2 << 20 if soft == resource.RLIM_INFINITY else soft
    if stack < STACK_BYTES:
        yield (
            f"a thread's stack is limited to {stack / 1e6:.0f} MB, so one form-encoded request of {stack / 2e6:.0f} MB "
            f"would crash the server; {remedy}"
        )


def strict_overcommit() -> bool:
    """Return whether the kernel counts address space as memory before it is used."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False


def raise_open_files() -> Iterator[str]:
    """Raise the limit of open files as far as possible; yield a warning if it stays too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < FEW_FILES:
        yield (
            f"only {hard} files may be open at once, one for each connection, so callers beyond that get no answer; "
            f"raise `ulimit -Hn` to {FEW_FILES} or more"
        )


def check_shared_memory(configs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning if /dev/shm cannot hold the largest accepted picture once per model instance.

    Args:
        configs: the model configurations, by name.
    """
    instances = {
        name: sum(group.count or 1 for group in config.instance_group) or 1
        for name, config in configs.items()
        if not config.HasField("ensemble_scheduling")
    }
    idle = INSTANCE_BYTES * sum(instances.values())
    per_pixel = sum(PIXEL_BYTES.get(name, 0) * count for name, count in instances.items())
    limits = [
        config.parameters["max_pixels"].string_value for config in configs.values() if "max_pixels" in config.parameters
    ]
    pixels = min((int(limit) for limit in limits if limit.isdecimal()), default=0)  # a model refuses other values
    needed = idle + per_pixel * pixels
    room = os.statvfs(SHARED_MEMORY)
    free = room.f_bavail * room.f_frsize
    if free < needed:
        fits = max(0, free - idle) // max(1, per_pixel) / 1e6
        consequence = f"pictures above {fits:.1f} megapixels fail" if per_pixel else "requests fail"
        yield (
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, but the models need {needed / 1e6:.0f} MB for pictures of "
            f"{pixels / 1e6:g} megapixels (max_pixels), so {consequence}; enlarge it (docker run --shm-size, shm_size "
            "in compose, an emptyDir in Kubernetes) or lower max_pixels"
        )
