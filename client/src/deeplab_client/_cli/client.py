"""The client, with a question that only the commands ask."""

from __future__ import annotations

from deeplab_client import SegmentationClient
from deeplab_client._calls import NO_WEIGHTS_TOLD
from deeplab_client._wire import WEIGHTS_PARAMETER


class Client(SegmentationClient):
    """A client that knows a model's weights without segmenting anything."""

    def weights(self) -> str | None:
        """Return what the model was loaded with; None where its config does not say, or is not told.

        Raises:
            SegmentationError: There is no telling for now.
        """
        calls = self._calls
        try:
            parameters = self._open().model_parameters(calls.model, deadline=calls.deadline(None))
        except NO_WEIGHTS_TOLD:
            return None
        return parameters.get(WEIGHTS_PARAMETER)
