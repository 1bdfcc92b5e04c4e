"""Models on a running Triton server: the core alone, and the ensemble as deeplab_client's users call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deeplab_client import SegmentationClient, SegmentationError, voc
from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.metrics import CLASSES
from deeplabv3.evaluation.predictors import Answer, PredictorFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from deeplabv3.evaluation.samples import Sample
    from deeplabv3.evaluation.server import Address

_INPUT, _OUTPUT = "input", "out"


class CorePredictor:
    """A core model, asked with the very tensor that the eager module gets.

    Args:
        address: of the server; gRPC, for tritonclient's HTTP client may not be shared between threads.
        model: `deeplabv3_resnet50` or another with its tensors.
        timeout: seconds that one answer may take.

    Raises:
        EvaluationError: no such server or model, or not one of the 21 VOC classes.
    """

    def __init__(self, address: Address, model: str, *, timeout: float) -> None:
        if address.scheme != "grpc":
            raise EvaluationError(
                f"--core {model} is asked over gRPC; give --url grpc://host:port in place of {address}"
            )
        served = address.model(model)
        shape = served.outputs.get(_OUTPUT, [])
        if shape[1:2] != [CLASSES]:
            raise EvaluationError(
                f"{address}: {model} has no output {_OUTPUT!r} of {CLASSES} classes, the background and Pascal VOC's; "
                f"its outputs are {dict(served.outputs)}; name a core model such as deeplabv3_resnet50"
            )
        self._client: Any = tritonclient.grpc.InferenceServerClient(address.host)
        self._timeout = timeout
        self._check_labels(model)
        self.facts = PredictorFacts(
            name=f"core {model}",
            kind="core",
            model=model,
            version=served.version,
            weights=served.parameters.get("weights"),
            resolution="shorter side 520",
            resize="shorter_side",
            device=None,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        prepared = sample.prepared
        try:
            logits = self._infer(self.facts.model, {_INPUT: prepared.pixels.numpy()}, _OUTPUT)
        except InferenceServerException as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(logits[0].argmax(0), prepared.target)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _check_labels(self, model: str) -> None:
        """Check the names of the classes where the server tells: a core model has none, `postprocess` has them."""
        inputs = {
            "LOGITS": np.zeros((1, CLASSES, 1, 1), np.float32),
            "SIZE": np.ones((1, 2), np.int32),
            "IMAGE_ID": np.zeros((1, 1), np.int64),
        }
        try:
            names = self._infer("postprocess", inputs, "CLASS_NAMES")[0]
        except InferenceServerException:
            return  # a server of other steps
        check_class_names(f"core {model}", [name.decode("utf-8", "replace") for name in names])

    def _infer(self, model: str, inputs: Mapping[str, npt.NDArray[Any]], output: str) -> npt.NDArray[Any]:
        tensors: list[Any] = []
        for name, array in inputs.items():
            tensor = tritonclient.grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [tritonclient.grpc.InferRequestedOutput(output)]
        return self._client.infer(model, tensors, outputs=wanted, client_timeout=self._timeout).as_numpy(output)


class EnsemblePredictor:
    """A segmentation ensemble: the file's bytes go up, a mask at the image's own size comes back.

    Args:
        address: of the server, by either protocol.
        model: `segment_resnet50` or another that deeplab_client can ask.
        timeout: seconds that one answer may take.

    Raises:
        EvaluationError: no such server or model.
    """

    def __init__(self, address: Address, model: str, *, timeout: float) -> None:
        served = address.model(model)
        self._client = SegmentationClient(str(address), model=model, timeout=timeout)
        try:
            # Before any image is counted: a model of other classes is not the fault of the first one.
            check_class_names(f"ensemble {model}", self._client.segment(np.zeros((8, 8, 3), np.uint8)).class_names)
        except (SegmentationError, EvaluationError) as exc:
            self._client.close()
            raise EvaluationError(f"{address}: {exc}") from exc
        self.facts = PredictorFacts(
            name=f"ensemble {model}",
            kind="ensemble",
            model=model,
            version=served.version,
            weights=served.parameters.get("weights"),
            resolution="own size",
            resize=_resize_mode(address),
            device=None,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        # The server would turn what its EXIF asks it to turn, and annotations are for the image as stored.
        picture = np.asarray(sample.image) if sample.turned else sample.data
        try:
            result = self._client.segment(picture)
        except SegmentationError as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(result.mask, sample.target)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def check_class_names(name: str, found: Sequence[str]) -> None:
    """Raise an EvaluationError unless a model's classes are the 21 of Pascal VOC."""
    if tuple(found) != voc.CLASS_NAMES:
        differing = [
            f"{class_id} is {there!r} in place of {ours!r}"
            for class_id, (there, ours) in enumerate(zip(found, voc.CLASS_NAMES, strict=False))
            if there != ours
        ]
        what = "; ".join(differing[:3]) or f"it has {len(found)} classes in place of {CLASSES}"
        raise EvaluationError(
            f"{name}: its classes are not the 21 of Pascal VOC, so these annotations say nothing about it: {what}"
        )


def _resize_mode(address: Address) -> str | None:
    """Return preprocess's resize mode, on which the ensemble's figures depend."""
    try:
        return address.model("preprocess").parameters.get("resize_mode")
    except EvaluationError:
        return None  # an ensemble of other steps
