"""Predictors on a running Triton server: the model for direct callers, and the ensemble as users call it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from deeplab_client import SegmentationClient, SegmentationError
from deeplabv3.evaluation import EvaluationError
from deeplabv3.evaluation.predictors import IMAGENET, Answer, Classes, Normalization, PredictorFacts
from deeplabv3.server_statistics import server_address

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from deeplabv3.evaluation.datasets import Sample

_SECONDS = 30.0
_INPUT, _OUTPUT = "input", "out"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Metadata of a model on the server.

    Attributes:
        version: the newest loaded version.
        parameters: the parameters of its config; empty if the server does not return configs.
        outputs: the shape of each output, with the batch dimension first.
    """

    version: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Server:
    """A server by its address, and its metadata."""

    scheme: str
    host: str

    @classmethod
    def of(cls, url: str) -> Server:
        """Parse `grpc://host:port`, `http://host:port`, or `host:port` for gRPC; TLS is not supported."""
        with contextlib.suppress(ValueError):
            scheme, host = server_address(url)
            if scheme in {"grpc", "http"}:
                return cls(scheme, host)
        raise EvaluationError(f"--url must be grpc://host:port or http://host:port, got {url!r}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"

    def version(self) -> str:
        """Return the version of the server.

        Raises:
            EvaluationError: the server does not answer.
        """
        with self._connected("the server does not answer") as (client, options):
            return str(client.get_server_metadata(**options)["version"])

    def model(self, name: str) -> ServedModel:
        """Return the metadata of a model.

        Raises:
            EvaluationError: the server does not answer, or has no such model.
        """
        with self._connected(f"no answer about the model {name}") as (client, options):
            metadata = client.get_model_metadata(name, **options)
        config: dict[str, Any] = {}
        # Errors are ignored, because operators may restrict this API; the server has just answered.
        with contextlib.suppress(EvaluationError), self._connected("") as (client, options):
            config = client.get_model_config(name, **options)
            config = config.get("config", config)
        return ServedModel(
            version=metadata["versions"][-1],
            parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
            outputs={output["name"]: [int(side) for side in output["shape"]] for output in metadata["outputs"]},
        )

    @contextlib.contextmanager
    def _connected(self, what: str) -> Generator[tuple[Any, dict[str, Any]]]:
        """Yield a tritonclient client and the options of its calls; turn its errors into an EvaluationError."""
        with contextlib.ExitStack() as stack:
            try:
                if self.scheme == "grpc":
                    client: Any = grpc.InferenceServerClient(self.host)
                    options = {"client_timeout": _SECONDS, "as_json": True}
                else:
                    from tritonclient import http  # noqa: PLC0415 - loads gevent, which only HTTP needs

                    client = http.InferenceServerClient(
                        self.host, connection_timeout=_SECONDS, network_timeout=_SECONDS
                    )
                    options = {}
                stack.callback(client.close)
                yield client, options
            except (InferenceServerException, OSError) as exc:
                remedy = "start the server (docs/serving.md), or give another --url"
                if "unknown model" in str(exc) and "is not found" in str(exc):
                    remedy = "give a model that it serves; builds with --no-direct leave out deeplabv3_*"
                raise EvaluationError(f"{self}: {what}: {exc}; {remedy}") from exc


class DirectPredictor:
    """A model for direct callers, called with the same tensor as the eager module.

    Args:
        server: with gRPC, because tritonclient's HTTP client must not be shared between threads.
        model: `deeplabv3_resnet50` or another with its tensors.
        timeout: time limit of one request in seconds.
        normalization: of the pixels.

    Raises:
        EvaluationError: no such server or model, or one without logits.
    """

    def __init__(self, server: Server, model: str, *, timeout: float, normalization: Normalization = IMAGENET) -> None:
        if server.scheme != "grpc":
            raise EvaluationError(f"--direct {model} needs gRPC; give --url grpc://host:port instead of {server}")
        served = server.model(model)
        _, count, *_ = [*served.outputs.get(_OUTPUT, []), 0, 0]
        if count < 1:
            raise EvaluationError(
                f"{server}: {model} has no output {_OUTPUT!r} with the logits of its classes; its outputs are "
                f"{dict(served.outputs)}; give a model for direct callers, such as deeplabv3_resnet50"
            )
        self._client: Any = grpc.InferenceServerClient(server.host)
        self._timeout = timeout
        self._normalization = normalization
        self.classes = Classes(count, self._class_names(server, count))
        self.facts = PredictorFacts(
            name=f"direct {model}",
            kind="direct",
            model=model,
            version=served.version,
            weights=served.parameters.get("weights"),
            resolution="shorter side 520",
            resize="shorter_side",
            device=None,
            normalization=normalization,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        prepared = sample.prepared
        pixels = self._normalization.apply(prepared.pixels).numpy()
        tensor = grpc.InferInput(_INPUT, list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        try:
            reply = self._client.infer(
                self.facts.model,
                [tensor],
                outputs=[grpc.InferRequestedOutput(_OUTPUT)],
                client_timeout=self._timeout,
            )
        except InferenceServerException as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(reply.as_numpy(_OUTPUT)[0].argmax(0), prepared.target)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @staticmethod
    def _class_names(server: Server, count: int) -> tuple[str, ...] | None:
        """Return the class names in the config of `postprocess`, because this model has none; None if not available."""
        try:
            names = tuple(json.loads(server.model("postprocess").parameters["class_names"]))
        except (EvaluationError, KeyError, ValueError):
            return None  # the server has other steps, or does not return configs
        return names if len(names) == count else None


class EnsemblePredictor:
    """A segmentation ensemble: takes the file's bytes, returns a mask at the image's own size.

    Args:
        server: with either protocol.
        model: `segment_resnet50` or another ensemble that deeplab_client supports.
        timeout: time limit of one request in seconds.

    Raises:
        EvaluationError: no such server or model.
    """

    def __init__(self, server: Server, model: str, *, timeout: float) -> None:
        self._client = SegmentationClient(str(server), model=model, timeout=timeout)
        try:
            # Before any image is counted, so that an unsuitable model is not reported as an error of the first image.
            probe = self._client.segment(np.zeros((8, 8, 3), np.uint8))
        except SegmentationError as exc:
            self._client.close()
            raise EvaluationError(f"{server}: ensemble {model}: {exc}") from exc
        self.classes = Classes(len(probe.class_names), probe.class_names)
        try:
            resize = server.model("preprocess").parameters.get("resize_mode")
        except EvaluationError:
            resize = None  # the ensemble has other steps
        self.facts = PredictorFacts(
            name=f"ensemble {model}",
            kind="ensemble",
            model=model,
            version=probe.model_version,
            weights=probe.weights,
            resolution="own size",
            resize=resize,
            device=None,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        # As pixels, because the server would apply the EXIF orientation, but annotations are for the image as stored.
        picture = np.asarray(sample.image) if sample.turned else sample.data
        try:
            result = self._client.segment(picture)
        except SegmentationError as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(result.mask, sample.target)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
