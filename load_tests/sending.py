"""The shared part of the users of one process: it sends, checks and counts requests, and measures the process."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
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
from deeplabv3.models.names import ensemble_name
from load_tests.options import weights
from load_tests.replies import WRONG_REQUEST, FirstReplies, FirstReply
from load_tests.summary import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from locust.env import Environment

    from load_tests.options import Options
    from load_tests.pictures import Picture

NOT_SENT = "not sent: the process already had --max-unfinished requests in flight"
UNFINISHED = "no reply by the end of the run"
LABELS: dict[type[SegmentationError], str] = {
    ClientLimitError: "not sent: the load generator reached a limit of its process or machine",
    DeadlineExceededError: "no reply within --timeout",
    ServerOverloadedError: "refused: the server is overloaded",
    ServerUnavailableError: "server unavailable: no connection, or the connection was lost",
    TLSError: "TLS failed: no trusted connection",
    AccessDeniedError: "access denied",
    ModelNotFoundError: "the server has no such model",
    InvalidImageError: "the server rejected the picture",
    ModelError: "the model failed",
    MismatchedReplyError: WRONG_REQUEST,
}

_logger = logging.getLogger("load_tests")


def protocol_of(url: str) -> str:
    """Return the name of a URL's protocol in reports."""
    return "HTTP" if urlsplit(url).scheme in {"http", "https"} else "gRPC"


def client_for(url: str, options: Options) -> SegmentationClient:
    """Return a client, with tokens and certificates from its DEEPLAB_ variables.

    Raises:
        ValueError: The URL or a variable is not valid.
    """
    return SegmentationClient.from_env(
        url=url, timeout=options.timeout, retries=options.retries, mask_format=options.mask_format
    )


def wait_until_ready(urls: Sequence[str], options: Options, *, seconds: float) -> str | None:
    """Wait until all servers accept requests for all variants; return None, or what is missing after `seconds`."""
    deadline = time.monotonic() + seconds
    for url, variant in itertools.product(urls, weights(options.variants)):
        with client_for(url, options) as client:
            try:
                left = max(0.001, deadline - time.monotonic())
                client.wait_until_ready(model=ensemble_name(variant), timeout=left)
            except SegmentationError as error:
                return f"{url} does not serve {ensemble_name(variant)}: {error}"
    return None


class Sending:
    """One run in one process.

    Attributes:
        has_ended: All replies have arrived, or the wait for them is over.

    Args:
        environment: Locust's environment.
        options: Options of this run.
        pictures: Pictures to draw from; empty in a worker that could not make them, which then sends nothing.
        kinds: Weights of the kinds of pictures.
    """

    def __init__(
        self, environment: Environment, *, options: Options, pictures: Sequence[Picture], kinds: Mapping[str, float]
    ) -> None:
        self.options = options
        self.has_ended = False
        self._environment = environment
        self._pictures = pictures
        # The weight of a kind is divided among its pictures.
        numbers = Counter(picture.kind for picture in pictures)
        self._picture_weights = [kinds[picture.kind] / numbers[picture.kind] for picture in pictures]
        self._variants = weights(options.variants)
        self._replies = FirstReplies(tolerance=options.tolerance)
        self._clients: dict[str, SegmentationClient] = {}
        self._under_way = Group()
        self._explained: set[str] = set()
        self._numbers = itertools.count()
        self._process = psutil.Process()
        self._began, self._cpu_before = self._clocks()
        self._spent: tuple[float, float] | None = None  # wall time and CPU time in seconds, until the end
        self._late: Counter[int] = Counter()
        self._most_unfinished = self._answered = 0
        self._models: dict[str, str] = {}
        self._first_replies: list[FirstReply] = []

    @property
    def sends(self) -> bool:
        """Whether users send: there are pictures, and the run has not ended."""
        return bool(self._pictures) and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the run has ended in this process; replies may still be awaited."""
        return self._spent is not None

    def random(self) -> random.Random:
        """Return the random source of the next user of this process; it is the same in each run with the same seed."""
        index = getattr(self._environment.runner, "worker_index", 0)
        return random.Random(f"{self.options.seed}/{index}/{next(self._numbers)}")  # noqa: S311 - draws load, not secrets

    def draw(self, source: random.Random) -> tuple[Picture, str]:
        """Draw a picture and a variant."""
        picture = source.choices(self._pictures, self._picture_weights)[0]
        return picture, source.choices(list(self._variants), list(self._variants.values()))[0]

    def ask(self, url: str, picture: Picture, variant: str, *, since: float) -> bool:
        """Send one request and count it; return whether the reply was correct.

        Args:
            url: URL of the server.
            picture: Picture to send.
            variant: Variant of the model.
            since: Scheduled time of the request on `time.perf_counter`, from which its latency counts.
        """
        failure: str | None = None
        took: float | None = None
        received = 0
        try:
            model = ensemble_name(variant)
            result = self._client(url).segment(picture.data, model=model)
            took, received = time.perf_counter() - since, result.mask.nbytes
            trained = "untrained weights" if result.untrained else f"weights {result.weights or 'unknown'}"
            self._models[model] = f"version {result.model_version}, {trained}"
            size = (picture.width, picture.height)
            failure, first = self._replies.check(result.mask, picture=picture.name, model=model, size=size)
            self._first_replies += [first] if first is not None else []
        except SegmentationError as error:
            failure = next((label for kind, label in LABELS.items() if isinstance(error, kind)), type(error).__name__)
            # A timeout counts as a latency. Quick refusals do not, because they would make the percentiles too low.
            took = time.perf_counter() - since if isinstance(error, DeadlineExceededError) else None
            self._explain(failure, error)
        except GreenletExit:
            self._count(url, picture, variant, took=None, failure=UNFINISHED)
            raise
        except Exception as error:  # noqa: BLE001 - otherwise Locust would not count the request
            failure = f"error of the load test itself: {type(error).__name__}"
            self._explain(failure, error)
        self._answered += failure is None and self.sends
        self._count(url, picture, variant, took=took, failure=failure, received=received)
        return failure is None

    def send(self, url: str, picture: Picture, variant: str, *, due: float) -> None:
        """Send one request of an open loop without waiting for its reply."""
        self.late(time.perf_counter() - due)
        if len(self._under_way) >= self.options.max_unfinished:
            self._count(url, picture, variant, took=None, failure=NOT_SENT)
            return
        self._under_way.spawn(self.ask, url, picture, variant, since=due)
        self._most_unfinished = max(self._most_unfinished, len(self._under_way))

    def late(self, seconds: float) -> None:
        """Record by how much an action was late."""
        self._late[rounded(1000 * seconds)] += 1

    def end(self) -> None:
        """Stop sending. Time and replies from now on do not count for the throughput."""
        self._spent = self._spent or self._spent_so_far()

    def drain(self, seconds: float) -> None:
        """Wait for the replies of an open loop, then close the connections; missing replies count as failures."""
        self._under_way.join(timeout=seconds)
        self._under_way.kill()
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def report(self) -> dict[str, Any]:
        """Return the results for the process that judges: totals, and the first replies since the last report."""
        first, self._first_replies = self._first_replies, []
        seconds, on_cpu = self._spent or self._spent_so_far()
        return {
            "seconds": seconds,
            "cpu": on_cpu / max(seconds, 1e-9),
            "late": {str(value): count for value, count in self._late.items()},
            "most_unfinished": self._most_unfinished,
            "answered": self._answered,
            "models": self._models,
            "first_replies": first,
            "has_ended": self.has_ended,
        }

    def _clocks(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return time.perf_counter(), times.user + times.system

    def _spent_so_far(self) -> tuple[float, float]:
        now, on_cpu = self._clocks()
        return now - self._began, on_cpu - self._cpu_before

    def _client(self, url: str) -> SegmentationClient:
        if url not in self._clients:
            self._clients[url] = client_for(url, self.options)
        return self._clients[url]

    def _count(
        self, url: str, picture: Picture, variant: str, *, took: float | None, failure: str | None, received: int = 0
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
        """Log the cause of a failure once per label, because reports show only the label."""
        if label not in self._explained:
            self._explained.add(label)
            _logger.warning("first failure %r: %s: %s", label, type(error).__name__, error)
