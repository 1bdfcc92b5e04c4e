"""What a call does before it sends; from threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_client._faults import Circumstances, from_connection

if TYPE_CHECKING:
    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options


def prepare(
    endpoint: Endpoint, options: Options, model: str, deadline: Deadline, request_id: str | None = None
) -> tuple[Circumstances, dict[str, str]]:
    """Return what messages should name, and the headers of one request.

    Raises:
        DeadlineExceededError: The token was not there in time.
    """
    headers = options.call_headers()
    where = Circumstances(str(endpoint), model, deadline.seconds, request_id, tuple(headers.values()))
    try:
        deadline.remaining()
    except TimeoutError as error:
        raise from_connection(error, where) from error
    return where, headers
