"""HTTP messages of the KServe v2 protocol with Triton's extension for binary tensors; no I/O.

tritonclient has the same, but in modules that load gevent, which this package does not use.
Source: Triton's docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from deeplab_client import _wire
from deeplab_client._faults import from_http, of_another_request, unreadable
from deeplab_client._transport import EnsembleStep, ModelConfig, Reply, ServerInfo, newest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._faults import CallContext
    from deeplab_client._options import Compression, Options
    from deeplab_client._transport import Request

SERVER = "/v2"
SERVER_READY = "/v2/health/ready"
STATISTICS = "/v2/models/stats"

_T = TypeVar("_T")

_OK = 200
_REDIRECTS = range(300, 400)
_HEADER_LENGTH = "Inference-Header-Content-Length"
# zlib's window bits: adding 16 writes gzip's format, adding 32 reads either format.
_WINDOW_BITS: dict[Compression, int] = {"gzip": 31, "deflate": 15}
_EITHER_FRAME = 47
# Bytes after decompression, to protect the memory from bad servers: replies (a mask of a gigapixel), the JSON of
# replies and configs, and error pages, whose beginning goes into messages.
_LONGEST_REPLY, _LONGEST_JSON, _LONGEST_REFUSAL = 1 << 30, 1 << 20, 1 << 16
_PIECE = 1 << 22  # bytes that are decompressed between two checks of the deadline
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, zlib.error)
_FAST = 1  # zlib level; higher levels take more time than they save in transfer


class Answer:
    """An HTTP response with its body.

    Args:
        status: The status code.
        headers: Header values by name, names in any case.
        body: The body, compressed or not.
        asked: The requested compression; no other is decompressed.
        deadline: Deadline of the call, which decompression keeps.
    """

    __slots__ = ("_headers", "asked", "body", "deadline", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        asked: Compression | None,
        deadline: Deadline,
    ) -> None:
        self.status = status
        self.body = body
        self.asked = asked
        self.deadline = deadline
        self._headers = {name.lower(): value for name, value in headers.items()}

    @property
    def is_success(self) -> bool:
        """Whether the status is 200."""
        return self.status == _OK

    @property
    def is_compressed(self) -> bool:
        """Whether the body must be decompressed, which may take long."""
        return self.header("Content-Encoding") is not None

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return self._headers.get(name.lower())


def longest_body(status: int) -> int:
    """Return the most bytes that a body may have."""
    return _LONGEST_REPLY if status == _OK else _LONGEST_REFUSAL


def is_compressed(request: Request, compression: Compression | None) -> bool:
    """Return whether a request is compressed: only pixels gain from it."""
    return compression is not None and _wire.gains_from_compression(request.image)


def model_path(model: str, question: Literal["infer", "config", "ready"]) -> str:
    """Return the path of a request about a model."""
    return f"/v2/models/{quote(model, safe='')}/{question}"


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
    if compression is not None and is_compressed(request, compression):
        headers["Content-Encoding"] = compression
        compressor = zlib.compressobj(_FAST, wbits=_WINDOW_BITS[compression])
        body = compressor.compress(body) + compressor.flush()
    headers["Content-Length"] = str(len(body))
    return headers, body


def common_headers(options: Options, endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of every request."""
    # By default both libraries accept compression, and Triton would compress replies without being told to.
    headers = {"Accept-Encoding": options.compression or "identity"}
    if endpoint.proxy is not None and endpoint.is_forwarded:
        headers |= endpoint.proxy.headers
    return headers


def read_infer(answer: Answer, request: Request, where: CallContext) -> Reply:
    """Read the reply to an inference request.

    Raises:
        SegmentationError: It is an error, or cannot be read.
    """
    _check(answer, where)
    try:
        body = memoryview(_decompressed(answer, _LONGEST_REPLY))
        length = int(answer.header(_HEADER_LENGTH) or len(body))
        response = _json(body[:length])
        if response.get("id") not in {None, "", request.request_id}:
            raise of_another_request(str(response["id"]), where)
        body = body[length:]
        tensors: dict[str, NDArray[Any]] = {}
        for output in response["outputs"]:
            size = int(output["parameters"]["binary_data_size"])
            data, body = body[:size], body[size:]
            tensors[str(output["name"])] = _wire.read_tensor(output["datatype"], output["shape"], data, size=size)
        name, version = str(response["model_name"]), str(response["model_version"])
    except _UNREADABLE as error:
        failures = [unreadable(error, where)]
    else:
        return Reply({key: tensor for key, tensor in tensors.items() if key in request.outputs}, name, version)
    raise failures.pop()  # and not a variable: see `_faults.caused`


def read_config(answer: Answer, where: CallContext) -> ModelConfig:
    """Read the reply with a model's config.

    Raises:
        SegmentationError: It is an error, or cannot be read.
    """

    def read(config: dict[str, Any]) -> ModelConfig:
        return ModelConfig(
            {name: str(value["string_value"]) for name, value in config.get("parameters", {}).items()},
            frozenset(str(tensor["name"]) for tensor in config.get("input", ())),
            frozenset(str(tensor["name"]) for tensor in config.get("output", ())),
            tuple(
                EnsembleStep(
                    str(step["model_name"]),
                    frozenset(step["input_map"].values()),
                    frozenset(step["output_map"].values()),
                )
                for step in config.get("ensemble_scheduling", {}).get("step", ())
            ),
        )

    return _read_json(answer, where, read)


def read_versions(answer: Answer, where: CallContext) -> dict[str, str]:
    """Read the reply with the statistics of all loaded models.

    Raises:
        SegmentationError: It is an error, or cannot be read.
    """
    return _read_json(
        answer, where, lambda said: newest((str(each["name"]), str(each["version"])) for each in said["model_stats"])
    )


def read_server(answer: Answer, where: CallContext) -> ServerInfo:
    """Read the reply with name and version of the server.

    Raises:
        SegmentationError: It is an error, or cannot be read.
    """
    return _read_json(answer, where, lambda said: ServerInfo(str(said["name"]), str(said["version"])))


def _read_json(answer: Answer, where: CallContext, read: Callable[[dict[str, Any]], _T]) -> _T:
    _check(answer, where)
    try:
        return read(_json(_decompressed(answer, _LONGEST_JSON)))
    except _UNREADABLE as error:
        failures = [unreadable(error, where)]
    raise failures.pop()  # and not a variable: see `_faults.caused`


def read_ready(answer: Answer, where: CallContext) -> bool:
    """Read the reply with the readiness of the server or a model.

    Raises:
        AccessDeniedError: The server, or a proxy in front of it, denies access.
    """
    if answer.status in {401, 403, 407}:
        _check(answer, where)
    return answer.is_success


def _check(answer: Answer, where: CallContext) -> None:
    if not answer.is_success:
        try:
            body = _decompressed(answer, _LONGEST_REFUSAL)
        except (ValueError, zlib.error):
            body = b""
        message = _refusal(answer.status, body, answer.header("Location"))
        raise from_http(answer.status, message, where, retry_after=answer.header("Retry-After"))


def _refusal(status: int, body: bytes, location: str | None) -> str:
    """Return the text of an error: Triton's message, or the status with the text of a proxy."""
    text = body.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):  # a proxy's page
        said = text
    if status in _REDIRECTS:
        # Not followed, because the token is for this server.
        said = f"a redirect to {location or 'an unnamed place'}, which is not followed: use the server's own URL"
    elif isinstance(said, str) and said and said is not text:
        return said
    elif not isinstance(said, str):  # not a message of Triton
        said = text
    return f"HTTP status {status}" + (f": {said}" if said else "")


def _json(text: bytes | memoryview) -> dict[str, Any]:
    if len(text) > _LONGEST_JSON:
        raise ValueError(f"its JSON has {len(text)} bytes, more than {_LONGEST_JSON}")
    return json.loads(bytes(text))


def _decompressed(answer: Answer, longest: int) -> bytes:
    """Return the decompressed body, of an error only its beginning.

    Raises:
        ValueError: It is longer than `longest` bytes, ends early, or has a compression that was not requested.
        TimeoutError: The deadline has passed.
    """
    encoding = (answer.header("Content-Encoding") or "identity").lower()
    if encoding == "identity":
        body, ended = answer.body, True
    elif encoding == answer.asked:
        body, ended = _decompress(answer.body, longest, answer.deadline)
    else:
        raise ValueError(f"its content encoding is {encoding!r}, which was not requested")
    if answer.is_success and len(body) > longest:
        raise ValueError(f"it is longer than {longest} bytes")
    if answer.is_success and not ended:
        raise ValueError("it ends early")
    return body[:longest]


def _decompress(data: bytes, longest: int, deadline: Deadline) -> tuple[bytes, bool]:
    decompressor = zlib.decompressobj(wbits=_EITHER_FRAME)
    parts: list[bytes] = []
    left = longest + 1
    while left > 0 and (part := decompressor.decompress(data, min(left, _PIECE))):
        deadline.remaining()
        parts.append(part)
        left -= len(part)
        data = decompressor.unconsumed_tail
    return b"".join(parts), decompressor.eof
