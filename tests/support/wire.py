"""Requests with tritonclient alone, as a program without deeplab_client would send them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    import numpy.typing as npt
    from triton_process import TritonProcess

Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
_LIBRARIES: dict[str, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@contextlib.contextmanager
def connected(server: TritonProcess, protocol: Protocol) -> Generator[Any]:
    """Yield tritonclient's own client."""
    library = _LIBRARIES[protocol]
    options = {"network_timeout": 300.0, "connection_timeout": 300.0} if protocol == "http" else {}
    url = server.grpc_url if protocol == "grpc" else server.http_url
    client = library.InferenceServerClient(url, **options)
    try:
        yield client
    finally:
        client.close()


def infer(
    server: TritonProcess,
    protocol: Protocol,
    model: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str] | None,
) -> dict[str, npt.NDArray[Any]]:
    """Send one request; return the requested outputs, or all outputs of a gRPC reply in its order for None."""
    library = _LIBRARIES[protocol]
    tensors: list[Any] = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with connected(server, protocol) as client:
        requested = None if outputs is None else [library.InferRequestedOutput(name) for name in outputs]
        reply = client.infer(model, tensors, outputs=requested)
        names = [output.name for output in reply.get_response().outputs] if outputs is None else outputs
        return {name: reply.as_numpy(name) for name in names}


def images(*encoded: bytes) -> npt.NDArray[Any]:
    """Return the IMAGE tensor of one request: (N, 1)."""
    return np.array([[data] for data in encoded], np.object_)
