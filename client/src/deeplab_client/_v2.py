"""HTTP messages of the KServe v2 protocol with Triton's extension for binary tensors; no I/O.

tritonclient has the same, but in modules that load gevent, which neither HTTP client of this package runs on.
Source: Triton's docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deeplab_client import _wire
from deeplab_client._faults import from_http, unreadable
from deeplab_client._transport import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deeplab_client._faults import Circumstances
    from deeplab_client._options import Compression, Options
    from deeplab_client._transport import Request

SERVER_READY = "/v2/health/ready"

_OK = 200
_HEADER_LENGTH = "Inference-Header-Content-Length"
# zlib's window bits: 16 more write gzip's frame, 32 more read either.
_WINDOW_BITS: dict[Compression, int] = {"gzip": 31, "deflate": 15}
_EITHER_FRAME = 47
_FAST = 1  # zlib level: higher ones cost more time than their bytes save


class Answer:
    """An HTTP answer, its body read.

    Args:
        status: The status code.
        headers: Header values by name, names in any case.
        body: As it came, compressed or not.
    """

    __slots__ = ("_headers", "body", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.body = body
        self._headers = {name.lower(): value for name, value in headers.items()}

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return self._headers.get(name.lower())


def infer_path(model: str) -> str:
    """Return where a model takes requests."""
    return f"/v2/models/{quote(model, safe='')}/infer"


def config_path(model: str) -> str:
    """Return where a model's config is."""
    return f"/v2/models/{quote(model, safe='')}/config"


def ready_path(model: str) -> str:
    """Return where a model's readiness is."""
    return f"/v2/models/{quote(model, safe='')}/ready"


def infer_request(request: Request, compression: Compression | None) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an inference request."""
    prefix = _wire.image_prefix(request.image)
    image = {
        "name": _wire.IMAGE,
        "shape": _wire.IMAGE_SHAPE,
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(prefix) + len(request.image)},
    }
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    head = json.dumps({"id": request.request_id, "inputs": [image], "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    body = b"".join((head, prefix, request.image))
    if compression is not None and _wire.gains_from_compression(request.image):
        headers["Content-Encoding"] = compression
        packer = zlib.compressobj(_FAST, wbits=_WINDOW_BITS[compression])
        body = packer.compress(body) + packer.flush()
    headers["Content-Length"] = str(len(body))
    return headers, body


def common_headers(options: Options) -> dict[str, str]:
    """Return the headers that every request has, whatever it is for."""
    # Both libraries would otherwise say what they like to have, and Triton compress what nobody asked it to.
    return {"Accept-Encoding": options.compression or "identity"}


def read_infer(answer: Answer, request: Request, where: Circumstances) -> Reply:
    """Read the answer to an inference request.

    Raises:
        SegmentationError: It is a refusal, or cannot be read.
    """
    _check(answer, where)
    try:
        body = memoryview(_plain(answer))
        length = int(answer.header(_HEADER_LENGTH) or len(body))
        response: dict[str, Any] = json.loads(bytes(body[:length]))
        body = body[length:]
        tensors: dict[str, NDArray[Any]] = {}
        for output in response["outputs"]:
            size = int(output["parameters"]["binary_data_size"])
            data, body = body[:size], body[size:]
            tensors[str(output["name"])] = _wire.read_tensor(output["datatype"], output["shape"], data, size=size)
        name, version = str(response["model_name"]), str(response["model_version"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, zlib.error) as error:
        raise unreadable(error, where) from error
    return Reply({key: tensor for key, tensor in tensors.items() if key in request.outputs}, name, version)


def read_parameters(answer: Answer, where: Circumstances) -> dict[str, str]:
    """Read the string parameters out of the answer to the question for a model's config.

    Raises:
        SegmentationError: It is a refusal, or cannot be read.
    """
    _check(answer, where)
    try:
        config: dict[str, Any] = json.loads(_plain(answer))
        return {name: str(value["string_value"]) for name, value in config.get("parameters", {}).items()}
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
        raise unreadable(error, where) from error


def read_ready(answer: Answer, where: Circumstances) -> bool:
    """Read the answer to the question whether the server or a model is ready.

    Raises:
        AccessDeniedError: The server, or a proxy before it, does not let us ask.
    """
    if answer.status in {401, 403, 407}:
        _check(answer, where)
    return answer.status == _OK


def _check(answer: Answer, where: Circumstances) -> None:
    if answer.status != _OK:
        try:
            body = _plain(answer)
        except (ValueError, zlib.error):
            body = b""
        raise from_http(
            answer.status, body, where, retry_after=answer.header("Retry-After"), location=answer.header("Location")
        )


def _plain(answer: Answer) -> bytes:
    encoding = answer.header("Content-Encoding") or "identity"
    if encoding == "identity":
        return answer.body
    if encoding not in _WINDOW_BITS:
        raise ValueError(f"its content encoding is {encoding!r}")
    return zlib.decompress(answer.body, wbits=_EITHER_FRAME)
