"""The interface between the clients and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline


@dataclass(frozen=True, slots=True)
class Request:
    """One image for one model.

    Attributes:
        model: Name of a segmentation ensemble.
        image: An encoded image.
        request_id: Id of the request in the server's log.
        outputs: Names of the requested tensors.
    """

    model: str
    image: bytes
    request_id: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a server, unchecked.

    Attributes:
        outputs: Output tensors by name, with their batch dimension; BYTES tensors hold bytes objects. May be read-only.
        model_name: Name of the model, from the server.
        model_version: Version of the model, from the server.
    """

    outputs: Mapping[str, NDArray[Any]]
    model_name: str
    model_version: str


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One step of an ensemble.

    Attributes:
        model: Name of the step's model.
        inputs: Names of the ensemble's tensors that it reads.
        outputs: Names of the ensemble's tensors that it writes.
    """

    model: str
    inputs: frozenset[str]
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The config of a model.

    Attributes:
        parameters: The string parameters.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        steps: Steps of an ensemble; empty for any other model.
    """

    parameters: Mapping[str, str]
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    steps: tuple[EnsembleStep, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Name and version of a server.

    Attributes:
        name: Name of the server, `triton`.
        version: Version of the server, such as `2.51.0`; its container has another one.
    """

    name: str
    version: str


def newest(models: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the newest version of each model, by its name."""
    return dict(sorted(models, key=lambda model: (model[0], len(model[1]), model[1])))


class Transport(Protocol):
    """One server over one protocol; can be shared between threads and created before a fork.

    Every method keeps its deadline, makes one attempt, and raises only subclasses of SegmentationError or an exception
    of a token function.
    """

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return the config of a model."""
        ...

    def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        ...

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return name and version of the server."""
        ...

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model are ready."""
        ...

    def close(self) -> None:
        """Close the connections of this process; may be called twice."""
        ...


class AsyncTransport(Protocol):
    """The asynchronous form of `Transport`, for one event loop; cancelling a call cancels its request."""

    # Waiting for a thread raises `_workers.Passed` at the deadline, which the client maps to its own error.

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return the config of a model."""
        ...

    async def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        ...

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return name and version of the server."""
        ...

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model are ready."""
        ...

    async def close(self) -> None:
        """Close the connections of this event loop; may be called twice."""
        ...
