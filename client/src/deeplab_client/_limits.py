"""Limits of this process and machine, as opposed to faults of the server or the image."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from typing import TYPE_CHECKING

from deeplab_client._errors import ClientLimitError, SegmentationError

if TYPE_CHECKING:
    from collections.abc import Generator

if sys.platform != "win32":
    import resource

_REASONS = {
    errno.EMFILE: "this process has reached its limit of open files and sockets{value}: raise it (`ulimit -n`)",
    errno.ENFILE: "this machine has reached its limit of open files and sockets: raise it (`fs.file-max` on Linux)",
    errno.ENOMEM: "this process cannot get more memory: give it more",
    errno.ENOBUFS: "the system has no more memory for sockets: close some",
    errno.EADDRNOTAVAIL: "this machine has no local port left for a connection: share one client to reuse connections",
}
_NO_THREAD = "this process cannot start another thread: raise its limit (`ulimit -u`)"
_ELSE = ", or make fewer calls at a time"
_NUMBERS = {os.strerror(number): number for number in _REASONS}
_WORDS = re.compile("|".join(map(re.escape, _NUMBERS)))
# A call holds one file or one socket at a time, and its connection stays open while the next call reads its file. Two
# thirds of the remaining descriptors are for calls, and one third is for the rest of the process.
_SHARES = 3


def limit_met(error: BaseException) -> ClientLimitError | None:
    """Return the error if a limit of this process or machine was met; None if something else failed."""
    if isinstance(error, SegmentationError):
        return None
    if isinstance(error, MemoryError):
        return limit_of(errno.ENOMEM)
    if isinstance(error, OSError):
        return limit_of(error.errno) if error.errno in _REASONS else None
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return ClientLimitError(_NO_THREAD + _ELSE)
    # The loader of libraries only reports it as text.
    return limit_named(str(error)) if isinstance(error, ImportError) else None


def limit_named(message: str) -> ClientLimitError | None:
    """Return the error for a limit that a message names in the system's words; None if it names none."""
    named = _WORDS.search(message)
    if named is None or (_NUMBERS[named[0]] == errno.EADDRNOTAVAIL and "ipv6:" in message):  # IPv6 may be off
        return None
    return limit_of(_NUMBERS[named[0]])


def limit_of(number: int) -> ClientLimitError:
    """Return the error for a limit with this errno."""
    limit = _most_descriptors()
    return ClientLimitError(_REASONS[number].format(value="" if limit is None else f", {limit}") + _ELSE)


@contextlib.contextmanager
def naming_limits() -> Generator[None]:
    """Raise a ClientLimitError if an import, a thread or a file meets a limit in the block.

    Raises:
        ClientLimitError: A limit was met.
    """
    try:
        yield
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        limit = limit_met(error)
        if limit is None:
            raise
        limit.__cause__ = error
        failures = [limit]
        del limit
    else:
        return
    raise failures.pop()  # and not a variable: see `_faults.caused`


def calls_at_a_time(wanted: int) -> int:
    """Return how many of the wanted calls can run at a time without meeting the limit of open files."""
    left = descriptors_left()
    return wanted if left is None else max(1, min(wanted, left // _SHARES))


def descriptors_left() -> int | None:
    """Return how many files and sockets this process can still open; None if that is unknown or unlimited."""
    limit = _most_descriptors()
    if limit is None:
        return None
    try:
        # Listing the folder opens one descriptor itself.
        return max(0, limit - len(os.listdir("/dev/fd")) + 1)  # noqa: PTH208 - names are enough
    except OSError as error:
        return 0 if error.errno in {errno.EMFILE, errno.ENFILE} else None


def check_descriptors(count: int) -> None:
    """Check that this process can open `count` more files or sockets.

    Raises:
        ClientLimitError: It cannot.
    """
    left = descriptors_left()
    if left is not None and left < count:
        raise limit_of(errno.EMFILE)


def _most_descriptors() -> int | None:
    if sys.platform == "win32":
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most
