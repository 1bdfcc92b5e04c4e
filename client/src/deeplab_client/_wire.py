"""The ensemble's tensors, the same for both protocols."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deeplab_client._errors import MismatchedReplyError, ModelError, UnsupportedError, reason_of
from deeplab_client._segmentation import Segmentation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deeplab_client._endpoint import Endpoint
    from deeplab_client._transport import Reply

MaskChoice: TypeAlias = Literal["auto", "raw", "png"]

IMAGE = "IMAGE"
IMAGE_SHAPE = (1, 1)
CONFIDENCE = "CONFIDENCE"
WEIGHTS_PARAMETER = "weights"
BACKGROUND_PARAMETER = "background"

_PIXELS = (b"P5", b"P6")  # Netpbm's magic numbers, at the start of images with uncompressed pixels
_DTYPES = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}
_MOST_CLASSES = 256
_LONGEST_NAME = 200  # characters of a model's name in a message
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Sent:
    """Facts about the sent image that its reply must match.

    Attributes:
        image_id: The expected IMAGE_ID.
        size: Height and width as shown; None for an image that came encoded.
    """

    image_id: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about the results of a model, from its config.

    Attributes:
        weights: Name of the weights; None if the server does not report it.
        background: Whether class 0 is a background.
    """

    weights: str | None = None
    background: bool = True


def facts_of(parameters: Mapping[str, str]) -> ModelFacts:
    """Read the parameters of an ensemble's config."""
    return ModelFacts(parameters.get(WEIGHTS_PARAMETER), parameters.get(BACKGROUND_PARAMETER) != "false")


def image_id(image: bytes) -> int:
    """Return the IMAGE_ID of an encoded image: its CRC-32."""
    return zlib.crc32(image)


def outputs_of(mask_format: MaskChoice, endpoint: Endpoint) -> tuple[str, ...]:
    """Return the tensors to request.

    `auto` is the faster format, measured by benchmarks/client.py: encoding and decoding a PNG takes as long as sending
    the raw mask at 1 Gbit/s, for all pictures of 0.2 to 12 megapixels, so only the connection decides. Within a data
    center connections are faster than that, and raw masks save the server the work.
    """
    if mask_format == "auto":
        mask_format = "raw" if endpoint.is_near else "png"
    # The step that makes the PNG passes on no IMAGE_ID, so the counts show whether it is of the same picture.
    mask = ("MASK_PNG", "CLASS_PIXELS") if mask_format == "png" else ("MASK",)
    return (*mask, "CLASS_NAMES", "IMAGE_ID")


def load_decoder(outputs: Sequence[str]) -> None:
    """Load the decoder of the outputs, so that reading them opens no file and does not block an event loop."""
    if "MASK_PNG" in outputs:
        from PIL import Image  # noqa: PLC0415 - slow to load, and not needed for raw masks

        Image.preinit()


def gains_from_compression(image: bytes) -> bool:
    """Return whether an encoded image has uncompressed pixels; all other formats are already compressed."""
    return image.startswith(_PIXELS)


def image_prefix(image: bytes) -> bytes:
    """Return the prefix of an encoded image in a BYTES tensor of one element: its length."""
    return _LENGTH.pack(len(image))


def read_tensor(datatype: str, shape: Sequence[int], data: bytes | memoryview, *, size: int) -> NDArray[Any]:
    """Read a tensor of `size` bytes in Triton's binary format; a view of `data` if it holds numbers.

    Raises:
        ValueError: The data does not fit the size or the shape, or the type is not supported.
    """
    if any(length < 0 for length in shape):
        raise ValueError(f"a tensor has the invalid shape {tuple(shape)}")
    if len(data) != size:
        raise ValueError(f"it ends within a tensor, after {len(data)} of {size} bytes")
    if datatype == "BYTES":
        elements = _read_elements(data, math.prod(shape))
        tensor = np.empty(len(elements), np.object_)
        tensor[:] = elements
        return tensor.reshape(shape)
    if datatype not in _DTYPES:
        raise ValueError(f"a tensor has the unsupported type {datatype!r}")
    return np.frombuffer(data, _DTYPES[datatype]).reshape(shape)


def without_confidence(model: str, request_id: str) -> UnsupportedError:
    """Return the error for an ensemble that has no output CONFIDENCE."""
    message = f"{model[:_LONGEST_NAME]!r} has no output {CONFIDENCE}: build the model repository again"
    return UnsupportedError(message, model=model, request_id=request_id)


def read_reply(reply: Reply, sent: Sent, *, facts: ModelFacts, confidence: bool, request_id: str) -> Segmentation:
    """Check a reply and create a result that owns its memory.

    Args:
        reply: The reply of the server.
        sent: Facts about the sent image.
        facts: Facts about the model.
        confidence: Whether CONFIDENCE was requested.
        request_id: The id of the request.

    Raises:
        MismatchedReplyError: It belongs to another image.
        ModelError: Tensors are missing or do not fit each other.
        UnsupportedError: CONFIDENCE was requested and is missing.
    """
    try:
        found = _read_image_id(reply.outputs.get("IMAGE_ID"))
        # First of all, because the tensors of another request may not fit each other either.
        if found != sent.image_id:
            raise _mismatched(f"its IMAGE_ID is {found}, not {sent.image_id}", reply, request_id)
        names = _read_names(reply.outputs.get("CLASS_NAMES"))
        mask, belongs_to_picture = _read_mask(reply.outputs, len(names))
        if not belongs_to_picture:
            raise _mismatched("the pixels of each class in its MASK_PNG differ from CLASS_PIXELS", reply, request_id)
        _check_ids(mask, len(names))
        if confidence and CONFIDENCE not in reply.outputs:
            raise without_confidence(reply.model_name, request_id)
        certainty = _read_confidence(reply.outputs[CONFIDENCE], mask.shape) if confidence else None
    except ValueError as flaw:
        message = f"{reply.model_name[:_LONGEST_NAME]!r} does not answer like a segmentation ensemble: {flaw}"
        raise ModelError(message, model=reply.model_name, request_id=request_id) from flaw
    if sent.size is not None and sent.size != mask.shape:
        (height, width), (rows, columns) = sent.size, mask.shape
        difference = f"its mask has {columns} x {rows} pixels, but the image has {width} x {height}"
        raise _mismatched(difference, reply, request_id)
    return Segmentation(
        mask=mask,
        class_names=tuple(_text(name) for name in names),
        model_name=reply.model_name,
        model_version=reply.model_version,
        weights=facts.weights,
        background=facts.background,
        confidence=certainty,
        request_id=request_id,
    )


def _read_elements(data: bytes | memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        if len(data) - position < _LENGTH.size:
            raise ValueError("a BYTES tensor ends within a length")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if length > len(data) - position:
            raise ValueError("a BYTES tensor ends within an element")
        elements.append(bytes(data[position : position + length]))
        position += length
    if len(elements) != count:
        raise ValueError(f"a BYTES tensor holds {len(elements)} elements, not {count}")
    return elements


def _read_image_id(tensor: NDArray[Any] | None) -> int:
    if tensor is None:
        raise ValueError("no output IMAGE_ID")
    if tensor.shape != IMAGE_SHAPE or tensor.dtype.kind not in "iu":
        raise ValueError(f"IMAGE_ID is {tensor.dtype} {tensor.shape}, not an integer {IMAGE_SHAPE}")
    return int(tensor[0, 0])


def _mismatched(difference: str, reply: Reply, request_id: str) -> MismatchedReplyError:
    name = repr(reply.model_name[:_LONGEST_NAME])
    message = (
        f"{name} answered with the reply to another request: {difference}; restart the server if this happens again"
    )
    return MismatchedReplyError(message, model=reply.model_name, request_id=request_id)


def _read_names(names: NDArray[Any] | None) -> NDArray[Any]:
    if names is None:
        raise ValueError("no output CLASS_NAMES")
    if names.ndim != 2 or len(names) != 1 or names.dtype != np.object_:  # noqa: PLR2004 - batch, class
        raise ValueError(f"CLASS_NAMES are {names.dtype} {names.shape}, not text (1, C)")
    if names.size > _MOST_CLASSES:
        raise ValueError(f"there are {names.size} CLASS_NAMES, but a uint8 mask holds at most {_MOST_CLASSES} classes")
    return names[0]


def _read_mask(outputs: Mapping[str, NDArray[Any]], classes: int) -> tuple[NDArray[np.uint8], bool]:
    """Return the mask, and whether it belongs to the same picture as the other tensors."""
    raw, png = outputs.get("MASK"), outputs.get("MASK_PNG")
    if raw is not None:
        return _read_plane("MASK", raw), True
    if png is None:
        raise ValueError("no output MASK")
    counts = _read_counts(outputs.get("CLASS_PIXELS"), classes)
    mask, found = _read_png(png, size=sum(counts))
    return mask, found[:classes] == counts


def _read_counts(counts: NDArray[Any] | None, classes: int) -> list[int]:
    if counts is None:
        raise ValueError("no output CLASS_PIXELS")
    if counts.shape != (1, classes) or counts.dtype.kind not in "iu":
        raise ValueError(f"CLASS_PIXELS are {counts.dtype} {counts.shape}, not integers (1, {classes})")
    return counts[0].tolist()


def _read_png(png: NDArray[Any], *, size: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Decode a mask of `size` pixels; return it and the number of pixels of each class id."""
    if png.shape != IMAGE_SHAPE:
        raise ValueError(f"MASK_PNG is {png.shape}, not {IMAGE_SHAPE}")
    from PIL import Image  # noqa: PLC0415 - already loaded, except with the caller's transport

    try:
        image: Image.Image = Image.open(BytesIO(png[0, 0]), formats=["PNG"])
        # Checked before decoding, because a PNG of few bytes can need gigabytes.
        fits = image.mode in {"P", "L"} and image.width * image.height == size > 0
        mask = np.array(image) if fits else None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise any exception
        raise ValueError(f"MASK_PNG cannot be decoded: {reason_of(error)}") from error
    if mask is None:
        raise ValueError(f"MASK_PNG has mode {image.mode} and size {image.size}, but CLASS_PIXELS count {size} pixels")
    return mask, image.histogram()


def _read_plane(name: str, tensor: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a copy of the only plane of a uint8 tensor."""
    if tensor.dtype != np.uint8 or tensor.ndim != 3 or len(tensor) != 1 or tensor.size == 0:  # noqa: PLR2004 - batch, height, width
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not uint8 (1, H, W)")
    return np.array(tensor[0], order="C")


def _read_confidence(tensor: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    confidence = _read_plane(CONFIDENCE, tensor)
    if confidence.shape != shape:
        raise ValueError(f"{CONFIDENCE} has shape {confidence.shape}, but the mask has {shape}")
    return confidence


def _check_ids(mask: NDArray[np.uint8], classes: int) -> None:
    largest = int(mask.max())  # 1.6 ms for 12 megapixels
    if largest >= classes:
        raise ValueError(f"the mask contains class id {largest}, but there are {classes} CLASS_NAMES")


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")
