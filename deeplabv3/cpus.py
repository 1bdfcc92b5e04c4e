"""The CPU features that int8 needs. Without torch, because both the build and the embedded server import it."""

from pathlib import Path

INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni")
"""The flags of /proc/cpuinfo of which one is needed: without them, sums of two products overflow 16 bits."""


def missing_for_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return why this CPU cannot multiply 8-bit integers without overflow, or None if it can."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if flags & set(INT8_FLAGS):
        return None
    return f"int8 needs a CPU with VNNI or AMX, but the flags in {cpuinfo} include none of {', '.join(INT8_FLAGS)}"
