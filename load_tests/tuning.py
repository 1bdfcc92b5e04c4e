"""What perf_analyzer and Model Analyzer need to search for settings: pictures as JSON, and a model repository.

    .venv/bin/python -m load_tests.tuning --model-repository models/gpu [--pictures DIR] [--output out/tuning]

perf_analyzer requests every output of a model, so that Triton also runs `encode_mask` and `confidence`, which few
requests need. Model Analyzer lowers `max_batch_size`, and Triton loads no model whose warm-up has larger batches.
OUTPUT/models is therefore a copy, for measuring only, whose ensembles end with `postprocess` and which has no warm-up.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import base64
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3.command_line import Parser
from deeplabv3.errors import RepositoryError
from deeplabv3.models.names import VARIANTS, core_name, ensemble_name
from deeplabv3.repository.config import config_text, read_config
from load_tests.pictures import PicturesError, from_folder, made

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from load_tests.pictures import Picture

ROOT = Path(__file__).resolve().parents[1]

_STEPS = ("preprocess", "postprocess")
_SEED = 1


def input_data(pictures: Iterable[Picture]) -> str:
    """Return the JSON for --input-data, in which each picture is one request.

    perf_analyzer sends the decoded base64 as it is, and a STRING on the wire begins with its length in 4 bytes.
    """
    requests = [
        {"IMAGE": {"content": {"b64": base64.b64encode(data).decode()}, "shape": [1]}}
        for picture in pictures
        for data in (struct.pack("<I", len(picture.data)) + picture.data,)
    ]
    return json.dumps({"data": requests})


def write_models(source: Path, target: Path) -> list[str]:
    """Copy a repository's core models, and ensembles that end with `postprocess`; return the ensembles' names.

    Args:
        source: A model repository.
        target: A folder that does not exist yet.

    Raises:
        RepositoryError: The source holds no ensemble, or a config.pbtxt that cannot be read; or the target exists.
    """
    variants = [variant for variant in VARIANTS if (source / ensemble_name(variant)).is_dir()]
    if not variants:
        raise RepositoryError(f"{source} has no segment_* model; build one with build_models.py")
    if target.exists():
        raise RepositoryError(f"{target} exists; remove it, or use another --output")
    target.mkdir(parents=True)
    for path in filter(Path.is_file, source.iterdir()):
        shutil.copy(path, target)
    cores, ensembles = [*map(core_name, variants)], [*map(ensemble_name, variants)]
    for model in (*_STEPS, *cores, *ensembles):
        shutil.copytree(source / model, target / model, ignore=shutil.ignore_patterns("__pycache__"))
        config = read_config(path := target / model / "config.pbtxt")
        config.ClearField("model_warmup")
        if model in ensembles:
            steps = config.ensemble_scheduling.step
            left_out = [step for step in steps if step.model_name not in (*_STEPS, *cores)]
            unmade = {name for step in left_out for name in step.output_map.values()}
            outputs = [output for output in config.output if output.name not in unmade]
            for step in left_out:
                steps.remove(step)
            for step in steps:
                step.output_map.pop("MASK_FOR_PNG", None)  # only encode_mask reads it
            del config.output[:]
            config.output.extend(outputs)
        path.write_text(config_text(config), encoding="utf-8")
    return ensembles


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; return an exit code."""
    parser = Parser(prog="python -m load_tests.tuning", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--model-repository", type=Path, required=True, metavar="DIR", help="what build_models.py wrote for the card")
    add("--pictures", type=Path, metavar="DIR", help="your pictures (default: six that are made of the repository's)")
    add("--output", type=Path, default=ROOT / "out" / "tuning", metavar="DIR", help="default: out/tuning")
    options = parser.parse_args(arguments)
    output: Path = options.output
    try:
        pictures = from_folder(options.pictures) if options.pictures else made(["web"], seed=_SEED)
        ensembles = write_models(options.model_repository, output / "models")
        (output / "pictures.json").write_text(input_data(pictures), encoding="ascii")
    except (PicturesError, RepositoryError, OSError) as error:
        parser.error(str(error))
    print(f"{output}: {len(pictures)} pictures, and {' and '.join(ensembles)}")  # noqa: T201 a command's own words
    return 0


if __name__ == "__main__":
    sys.exit(main())
