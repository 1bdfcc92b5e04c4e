"""What a running server tells of itself and its models."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf import json_format
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from deeplabv3.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server says of one model.

    Attributes:
        version: the newest that is loaded.
        parameters: of its config; empty where the server does not give configs away.
        outputs: shape of each output, the batch dimension in front.
    """

    version: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is."""

    scheme: str
    host: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse what deeplab_client takes too: `grpc://host:port`, `http://host:port` or `host:port` for gRPC."""
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        try:
            host = parts.netloc if parts.port else f"{parts.netloc}:{_DEFAULT_PORTS[parts.scheme]}"
        except (ValueError, KeyError):
            host = ""
        if not host or not parts.hostname or parts.scheme not in _DEFAULT_PORTS:
            raise EvaluationError(f"--url {url}: give grpc://host:port or http://host:port")
        return cls(parts.scheme, host)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"

    @contextlib.contextmanager
    def _asking(self, what: str) -> Generator[Any]:
        """Yield a tritonclient client for a few questions; what goes wrong names the server."""
        client: Any = None
        try:
            if self.scheme == "grpc":
                client = grpc.InferenceServerClient(self.host)
            else:
                from tritonclient import http  # noqa: PLC0415  loads gevent, which only this protocol needs

                client = http.InferenceServerClient(self.host, connection_timeout=_SECONDS, network_timeout=_SECONDS)
            yield client
        except (InferenceServerException, OSError) as exc:
            raise EvaluationError(
                f"{self}: {what}: {exc}; start the server (docs/serving.md), or give another --url"
            ) from exc
        finally:
            if client is not None:
                client.close()

    def server_version(self) -> str:
        """Return the version of the server."""
        with self._asking("the server does not answer") as client:
            answer = client.get_server_metadata(**self._options())
        return str(answer.version if self.scheme == "grpc" else answer["version"])

    def model(self, name: str) -> ServedModel:
        """Return what the server tells of a model.

        Raises:
            EvaluationError: no server, or no such model on it.
        """
        with self._asking(f"no answer about the model {name}") as client:
            metadata = self._plain(client.get_model_metadata(name, **self._options()))
        parameters: dict[str, str] = {}
        # Operators may restrict this API; the server has just answered.
        with contextlib.suppress(EvaluationError), self._asking("") as client:
            config = self._plain(client.get_model_config(name, **self._options()))
            config = config.get("config", config)
            for key, value in config.get("parameters", {}).items():
                parameters[key] = value["string_value"]
        return ServedModel(
            version=metadata["versions"][-1],
            parameters=parameters,
            outputs={output["name"]: [int(side) for side in output["shape"]] for output in metadata["outputs"]},
        )

    def _options(self) -> dict[str, Any]:
        return {"client_timeout": _SECONDS} if self.scheme == "grpc" else {}

    def _plain(self, answer: Any) -> dict[str, Any]:  # noqa: ANN401  tritonclient's
        if self.scheme == "http":
            return answer
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)
