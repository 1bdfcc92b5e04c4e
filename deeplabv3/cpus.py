"""The CPU features that a precision needs. Without torch, because both the build and the embedded server import it."""

from pathlib import Path

NEEDED = {
    "bf16": (("avx512bw", "avx512dq", "avx512vl"), ("avx_vnni",)),
    "fp16": (("avx512_fp16",), ("avx_vnni",)),
    "int8": (("amx_int8",), ("avx512_vnni",), ("avx_vnni",)),
}
"""By precision, the flags of /proc/cpuinfo of which one group must be present.

Without those of int8, sums of two products overflow 16 bits and the masks are wrong. Without those of bf16 and fp16,
oneDNN refuses the convolutions (mkldnn_convolution in PyTorch's aten/src/ATen/native/mkldnn/Conv.cpp). It also computes
with AVX-NE-CONVERT, which is no flag; only some CPUs with AVX-VNNI have it, so there the build asks PyTorch.
"""
_FEATURES = {"bf16": "AVX-512", "fp16": "AVX512-FP16", "int8": "VNNI or AMX"}


def missing_for(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return why this CPU cannot compute in a precision, or None if it can."""
    if precision not in NEEDED:
        return None
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if any(flags.issuperset(group) for group in NEEDED[precision]):
        return None
    groups = " or ".join(" and ".join(group) for group in NEEDED[precision])
    return f"{precision} needs a CPU with {_FEATURES[precision]}, but the flags in {cpuinfo} do not include {groups}"
