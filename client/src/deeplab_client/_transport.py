"""The seam between the client and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Request:
    """One image for one model.

    Attributes:
        model: Name of a segmentation ensemble.
        image: An encoded image, as the server decodes it.
        request_id: Identifies the request in the server's log.
    """

    model: str
    image: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, before anybody judged it.

    Attributes:
        outputs: Output tensors by name; BYTES tensors hold bytes objects. May be read-only.
        model_name: As the server calls it.
        model_version: As the server calls it.
    """

    outputs: Mapping[str, NDArray[Any]]
    model_name: str
    model_version: str


class Transport(Protocol):
    """One server by one protocol; safe to share between threads and to create before a fork.

    Every method raises only leaves of SegmentationError and keeps the deadline.
    """

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    def model_parameters(self, model: str, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the string parameters in the model's config."""
        ...

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        ...

    def close(self) -> None:
        """Close what this process has opened; may be called twice."""
        ...


def open_transport(endpoint: Endpoint) -> Transport:
    """Load the protocol's library and make a transport; no I/O."""
    if endpoint.scheme == "grpc":
        from deeplab_client._grpc import GrpcTransport  # noqa: PLC0415 only the protocol in use is loaded

        return GrpcTransport(endpoint)
    from deeplab_client._http import HttpTransport  # noqa: PLC0415 only the protocol in use is loaded

    return HttpTransport(endpoint)
