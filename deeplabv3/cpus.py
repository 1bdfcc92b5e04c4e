"""What a CPU must have for int8; without torch, because build and embedded server ask."""

from pathlib import Path

INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni")
"""One of these in the flags of /proc/cpuinfo: with others, sums of two products overflow 16 bits."""


def missing_for_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return what this CPU lacks to multiply 8-bit integers without overflow; None where it lacks nothing."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if flags & set(INT8_FLAGS):
        return None
    return f"int8 needs a CPU with VNNI or AMX, but the flags in {cpuinfo} include none of {', '.join(INT8_FLAGS)}"
