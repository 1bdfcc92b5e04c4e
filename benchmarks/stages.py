"""Time each stage of the pipeline alone, in one process and one thread; benchmarks/pipeline.py runs this script.

It prints one JSON object: seconds per image by stage, one value for each round.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Their folders are on PYTHONPATH; they are the files that Triton's Python models use.
import confidence_ops
import image_ops
import mask_ops
import torch

from benchmarks import harness
from deeplabv3.models.names import core_name
from deeplabv3.repository.config import read_config

ROUNDS = 20


def main() -> None:
    """Measure. The arguments are a model repository with a stand-in core model and an encoded image."""
    repository, image = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    torch.set_num_threads(1)
    parameters = read_config(repository / "preprocess" / "config.pbtxt").parameters
    settings = image_ops.Settings.from_parameters({name: value.string_value for name, value in parameters.items()})
    core: Any = torch.jit.load(str(repository / core_name("resnet50") / "1" / "model.pt"))
    (decoded,), _ = image_ops.decode_alike([image], settings)
    pixels, size = image_ops.preprocess([image], settings)
    logits = core(torch.from_numpy(pixels), torch.zeros(1, 1, dtype=torch.int64))[0].numpy()
    limits: dict[str, int] = {"class_count": logits.shape[1], "max_pixels": settings.max_pixels}
    stages = {
        "decode": lambda: image_ops.decode_alike([image], settings),
        "resize": lambda: image_ops.resize(decoded, (pixels.shape[1], pixels.shape[2]), settings),
        "upsample and arg max": lambda: mask_ops.postprocess(logits, size, **limits),
        "confidence": lambda: confidence_ops.confidence(logits, size, **limits),
    }
    found = harness.time_in_turns(stages, rounds=ROUNDS, threads=1, seconds=0.01)
    sys.stdout.write(json.dumps({name: measured.times for name, measured in found.items()}))


if __name__ == "__main__":
    main()
