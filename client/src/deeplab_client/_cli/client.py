"""The client, with a question that only the commands ask."""

from __future__ import annotations

from deeplab_client import SegmentationClient, _steps


class Client(SegmentationClient):
    """A client that knows a model's weights without segmenting anything."""

    def weights(self) -> str | None:
        """Return what the model was loaded with; None where its config does not say, or is not told.

        Raises:
            SegmentationError: There is no telling for now.
        """
        return self._run(_steps.weights(self._calls, None, self._calls.deadline(None)))
