"""The GPUs that a model repository needs, and the memory that Triton reserves for them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from deeplabv3.embedded.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A picture of 520 x 520 is 0.8 MB on its way to the core model, and its logits are 0.36 MB. A batch of 32 in each of
# two instances of both core models, the logits in postprocess, 128 waiting pictures, and 8 pictures of direct callers
# of both variants, 3.2 MB each with 22.7 MB of `out`, are 0.7 GB. Beyond its pools Triton allocates memory with CUDA at
# each batch, which waits for all work of the GPU, or leaves tensors on the CPU.
POOL_BYTES = 1 << 30


def gpu_options(configs: Mapping[str, Any]) -> list[str]:
    """Return tritonserver's options for GPUs; an empty list if no model runs on a GPU.

    Args:
        configs: the model configurations, by name.

    Raises:
        StartError: a model runs on a GPU, but there is none.
    """
    models = [name for name, config in configs.items() if runs_on_gpu(config)]
    if not models:
        return []
    count, reason = count_gpus()
    if count == 0:
        raise StartError(
            f"{', '.join(models)}: config.pbtxt asks for a GPU (KIND_GPU), but CUDA finds none ({reason}); build for "
            "the CPU with build_models.py --device cpu"
        )
    # Page-locked memory, from which a GPU copies, holds the tensors that wait on the CPU.
    pools = [f"--cuda-memory-pool-byte-size={gpu}:{POOL_BYTES}" for gpu in range(count)]
    return [*pools, f"--pinned-memory-pool-byte-size={POOL_BYTES}"]


def runs_on_gpu(config: Any) -> bool:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return whether a model has instances that need a GPU."""
    return any(group.kind == group.KIND_GPU for group in config.instance_group)


def count_gpus() -> tuple[int, str]:
    """Return how many GPUs this process can use, and the reason if there are none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no driver (libcuda.so.1) is installed"
    count = ctypes.c_int(0)
    if error := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0, f"the driver reports error {error}"
    return count.value, "no device is visible"
