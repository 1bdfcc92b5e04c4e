"""What the users of one process share: clients, pictures and first replies; requests are sent and counted here."""

from __future__ import annotations

import itertools
import logging
import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gevent import GreenletExit
from gevent.pool import Group

from deeplab_client import (
    AccessDeniedError,
    ClientLimitError,
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    ModelError,
    ModelNotFoundError,
    SegmentationClient,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    TLSError,
)
from load_tests.replies import WRONG_REQUEST, FirstReplies, FirstReply
from load_tests.strain import ProcessStrain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from locust.env import Environment

    from load_tests.options import Options
    from load_tests.pictures import Picture

NOT_SENT = "not sent: the process has as many unfinished requests as --max-unfinished allows"
UNFINISHED = "unfinished when the run ended"
LABELS: dict[type[SegmentationError], str] = {
    ClientLimitError: "not sent: a limit of the load generator's own process or machine",
    DeadlineExceededError: "no reply within --timeout",
    ServerOverloadedError: "refused: the server has too much to do",
    ServerUnavailableError: "server unavailable: not reached, or the connection was lost",
    TLSError: "no trusted connection",
    AccessDeniedError: "access denied",
    ModelNotFoundError: "the server has no such model",
    InvalidImageError: "the server refused the picture",
    ModelError: "the model failed",
    MismatchedReplyError: WRONG_REQUEST,
}

_logger = logging.getLogger("load_tests")


def protocol_of(url: str) -> str:
    """Return how requests to a URL are called in reports."""
    return "HTTP" if urlsplit(url).scheme in {"http", "https"} else "gRPC"


def client_for(url: str, options: Options) -> SegmentationClient:
    """Return a client; tokens and certificates come from its own DEEPLAB_ variables."""
    return SegmentationClient.from_env(
        url=url, timeout=options.timeout, retries=options.retries, mask_format=options.mask_format
    )


class Sending:
    """One run in one process.

    Args:
        environment: Locust's.
        options: Of this run.
        pictures: To draw from.
        kinds: Weights of the kinds of pictures.
        first_reply: Told of each reply that others are compared with.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        options: Options,
        pictures: Sequence[Picture],
        kinds: dict[str, float],
        first_reply: Callable[[FirstReply, str, str], None],
    ) -> None:
        self.options = options
        self.strain = ProcessStrain()
        self._environment = environment
        self._pictures = pictures
        # The weight of a kind is shared among its pictures.
        numbers = {kind: sum(picture.kind == kind for picture in pictures) for kind in kinds}
        self._picture_weights = [kinds[picture.kind] / numbers[picture.kind] for picture in pictures]
        self._first_reply = first_reply
        self._replies = FirstReplies(tolerance=options.tolerance)
        self._clients: dict[str, SegmentationClient] = {}
        self._under_way = Group()
        self._seen: set[str] = set()
        self._numbers = itertools.count()
        self._ending = False

    @property
    def sends(self) -> bool:
        """Whether there is something to send: not at the end, nor in a worker that could not make pictures."""
        return bool(self._pictures) and not self._ending

    def random(self) -> random.Random:
        """Return what the next user of this process draws from, the same in each run of one seed."""
        index = getattr(self._environment.runner, "worker_index", 0)
        return random.Random(f"{self.options.seed}/{index}/{next(self._numbers)}")  # noqa: S311 draws load, keeps no secret

    def draw(self, source: random.Random) -> tuple[Picture, str]:
        """Draw a picture and a variant."""
        variants = self.options.variants
        picture = source.choices(self._pictures, self._picture_weights)[0]
        return picture, source.choices(list(variants), list(variants.values()))[0]

    def ask(self, url: str, picture: Picture, variant: str, *, since: float) -> bool:
        """Send one request and count it; return whether the reply was right.

        Args:
            url: The server's.
            picture: What to send.
            variant: Which model.
            since: When the request was meant to leave, on `time.perf_counter`: its latency counts from there.
        """
        failure: str | None = None
        took: float | None = None
        received = 0
        model = f"segment_{variant}"
        try:
            mask = self._client(url).segment(picture.data, model=model).mask
            took = time.perf_counter() - since
            received = mask.nbytes
            failure, first = self._replies.check(
                mask, picture=picture.name, model=model, size=(picture.width, picture.height)
            )
            if first is not None:
                self._first_reply(first, picture.name, model)
        except SegmentationError as error:
            failure = next((label for kind, label in LABELS.items() if isinstance(error, kind)), type(error).__name__)
            # The wait for a reply that never came is a latency; quick refusals would flatter the percentiles.
            took = time.perf_counter() - since if isinstance(error, DeadlineExceededError) else None
            self._explain(failure, error)
        except GreenletExit:
            self._count(url, picture, variant, took=None, failure=UNFINISHED)
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, the request failed, and Locust would not count it
            failure = f"error of the load test itself: {type(error).__name__}"
            self._explain(failure, error)
        self.strain.answered += failure is None and not self._ending
        self._count(url, picture, variant, took=took, failure=failure, received=received)
        return failure is None

    def send(self, url: str, picture: Picture, variant: str, *, due: float) -> None:
        """Send one request of an open loop, and do not wait for its reply."""
        self.strain.late(time.perf_counter() - due)
        if len(self._under_way) >= self.options.max_unfinished:
            self._count(url, picture, variant, took=None, failure=NOT_SENT)
            return
        self._under_way.spawn(self.ask, url, picture, variant, since=due)
        self.strain.unfinished(len(self._under_way))

    def end(self) -> None:
        """Take note that no more requests are sent: replies from now on were waited for."""
        self._ending = True
        self.strain.end()

    def drain(self, seconds: float) -> None:
        """Wait for the replies that an open loop has not waited for; those that are still missing then are failures."""
        self._under_way.join(timeout=seconds)
        self._under_way.kill()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, url: str) -> SegmentationClient:
        if url not in self._clients:
            self._clients[url] = client_for(url, self.options)
        return self._clients[url]

    def _count(
        self,
        url: str,
        picture: Picture,
        variant: str,
        *,
        took: float | None,
        failure: str | None,
        received: int = 0,
    ) -> None:
        self._environment.events.request.fire(
            request_type=protocol_of(url),
            name=f"{variant} {picture.kind}",
            response_time=None if took is None else 1000 * took,
            response_length=received,
            exception=failure,
            context={},
        )

    def _explain(self, label: str, error: Exception) -> None:
        """Log what lies behind a reason once: reports show the reason alone."""
        if label not in self._seen:
            self._seen.add(label)
            _logger.warning("first %r: %s: %s", label, type(error).__name__, error)


def wait_until_ready(urls: Sequence[str], options: Options, *, seconds: float) -> str | None:
    """Return once all servers take requests for all variants, or what is missing after some seconds."""
    deadline = time.monotonic() + seconds
    for url, variant in itertools.product(urls, options.variants):
        with client_for(url, options) as client:
            try:
                left = max(0.001, deadline - time.monotonic())
                client.wait_until_ready(model=f"segment_{variant}", timeout=left)
            except SegmentationError as error:
                return f"{url} does not serve segment_{variant}: {error}"
    return None


def first_reply_message(reply: FirstReply, picture: str, model: str) -> dict[str, Any]:
    """Return a first reply as what Locust can send."""
    return {
        "picture": picture,
        "model": model,
        "digest": reply.digest,
        "packed": reply.packed,
        "shape": list(reply.shape),
    }


def first_reply_of(message: dict[str, Any]) -> tuple[FirstReply, str, str]:
    """Return the first reply of a message, its picture and its model."""
    rows, columns = message["shape"]
    return FirstReply(message["digest"], message["packed"], (rows, columns)), message["picture"], message["model"]
