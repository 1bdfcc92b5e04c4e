"""The client, with a question that only the commands ask."""

from __future__ import annotations

from deeplab_client import SegmentationClient, SegmentationError
from deeplab_client._calls import NO_WEIGHTS_TOLD, Call
from deeplab_client._wire import WEIGHTS_PARAMETER


class Client(SegmentationClient):
    """A client that knows a model's weights without segmenting anything."""

    def weights(self) -> str | None:
        """Return what the model was loaded with; None where its config does not say, or is not told.

        Raises:
            SegmentationError: There is no telling for now.
        """
        deadline = self._calls.deadline(None)
        call = Call(self._calls, None, deadline)
        while True:
            transport = self._open()
            try:
                parameters = transport.model_parameters(call.model, deadline=deadline)
            except NO_WEIGHTS_TOLD:
                return None
            except SegmentationError as error:
                delay = self._delay_after(error, call)
                if delay is None:
                    raise
                deadline.pause(delay)
            else:
                return parameters.get(WEIGHTS_PARAMETER)
