"""The seam between the clients and a protocol."""

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
        image: An encoded image, as the server decodes it.
        request_id: Identifies the request in the server's log.
        outputs: Names of the tensors that are asked for.
    """

    model: str
    image: bytes
    request_id: str
    outputs: tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One step of an ensemble.

    Attributes:
        model: Its name.
        inputs: The ensemble's tensors that it reads.
        outputs: The ensemble's tensors that it gives.
    """

    model: str
    inputs: frozenset[str]
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model's config says.

    Attributes:
        parameters: Its string parameters.
        inputs: The names of its inputs.
        outputs: The names of its outputs.
        steps: Those of an ensemble; empty for any other model.
    """

    parameters: Mapping[str, str]
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    steps: tuple[EnsembleStep, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server, as it calls itself.

    Attributes:
        name: `triton`.
        version: Such as `2.51.0`: that of the server, which is another than that of its container.
    """

    name: str
    version: str


def newest(models: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the newest version of each model, by its name."""
    return dict(sorted(models, key=lambda model: (model[0], len(model[1]), model[1])))


class Transport(Protocol):
    """One server by one protocol; safe to share between threads and to create before a fork.

    Every method keeps the deadline and raises only leaves of SegmentationError, or what a token function raised. None
    tries twice.
    """

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return what the model's config says."""
        ...

    def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        ...

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return what the server calls itself."""
        ...

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        ...

    def close(self) -> None:
        """Close what this process has opened; may be called twice."""
        ...


class AsyncTransport(Protocol):
    """The twin of `Transport` for one event loop; a call that is cancelled ends its request too."""

    # What waits for a thread raises `_workers.Passed` at its deadline, which the client turns into the call's error.

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return what the model's config says."""
        ...

    async def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        ...

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return what the server calls itself."""
        ...

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        ...

    async def close(self) -> None:
        """Close what this event loop has opened; may be called twice."""
        ...
