"""The config.pbtxt of a model, read and written through Triton's own schema."""

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2

from deeplabv3.errors import RepositoryError

_HEADER = (
    "# Written by build_models.py: change its options, not this file. Those of a step are --set MODEL.PARAMETER=VALUE; "
    "see docs/building.md.\n"
)

pb: Any = model_config_pb2  # generated at import, without types


def read_config(path: Path) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return the model configuration in a config.pbtxt.

    Raises:
        RepositoryError: a ValueError. The file is not a model configuration.
        OSError: the file cannot be read.
    """
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        raise RepositoryError(f"{path} is not a model configuration: {exc}") from exc


def parse_config(text: str) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return the model configuration in a text."""
    return text_format.Parse(text, pb.ModelConfig())


def parameters_of(config: Any) -> dict[str, str]:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return the string parameters of a model configuration, by name."""
    return {name: value.string_value for name, value in config.parameters.items()}


def config_text(config: Message) -> str:
    """Return the text of a config.pbtxt, with a header."""
    return f"{_HEADER}{text_format.MessageToString(config)}"
