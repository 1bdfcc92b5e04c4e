"""Locust's users and shape: a user waits for its replies or sends on a schedule, to one of two URLs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from gevent.event import Event
from locust import LoadTestShape, User, task
from locust.exception import StopUser

from load_tests.shapes import Stage, Timetable, stage_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from locust.env import Environment

    from load_tests.sending import Sending

# A refusal takes a millisecond, so users without a pause would count thousands of failures per second.
_PAUSE_AFTER_FAILURE = 1.0
_SPAWN_RATE = 100.0  # users per second: stages are steps, not ramps; Locust warns above this


class SegmentationUser(User):
    """Sends random pictures to one URL and receives their masks."""

    abstract = True
    sending: ClassVar[Sending]  # of this process; replaced at the start of each run
    has_begun: ClassVar[Event] = Event()  # set when the first run of this process has begun

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.has_begun.wait()  # a worker that joins a run may create users before its start event
        options = self.sending.options
        self._random = self.sending.random()
        self._pause = 0.0
        self._is_stopping = False
        self._timetable: Timetable | None = None
        if options.loop == "open":
            self._timetable = Timetable(
                time.perf_counter(), rate=options.rate, poisson=options.arrivals == "poisson", random=self._random
            )

    def url(self) -> str:
        """Return the URL that this user sends to."""
        return self.environment.host or ""

    def on_start(self) -> None:
        """Wait for the first time of the timetable."""
        if self._timetable is not None:
            self._pause = self._timetable.wait(time.perf_counter())
            self.wait()

    def stop(self, force: bool = False) -> bool:  # noqa: FBT001, FBT002 - Locust's signature
        """Stop after the request in flight."""
        if self._is_stopping and not force:
            return False  # two signals may stop a run twice, and then Locust would raise
        # Locust kills a waiting user, but its pause may end before that.
        self._is_stopping = True
        return super().stop(force)

    @task
    def segment(self) -> None:
        """Send one picture."""
        if self._is_stopping or not self.sending.sends:
            raise StopUser
        picture, variant = self.sending.draw(self._random)
        if self._timetable is None:
            is_correct = self.sending.ask(self.url(), picture, variant, since=time.perf_counter())
            pause = self.sending.options.think_time * self._random.uniform(0.5, 1.5)
            self._pause = pause if is_correct else max(pause, _PAUSE_AFTER_FAILURE)
        else:
            self.sending.send(self.url(), picture, variant, due=self._timetable.take())
            self._pause = self._timetable.wait(time.perf_counter())

    def wait_time(self) -> float:
        """Return the seconds until the next request."""
        return self._pause


class HostUser(SegmentationUser):
    """Sends to --host."""


class SecondHostUser(SegmentationUser):
    """Sends to --second-host."""

    def url(self) -> str:
        """Return the URL that this user sends to."""
        return self.sending.options.second_host


class StagedShape(LoadTestShape):
    """A list of stages as a shape of Locust.

    Args:
        stages: The stages in order.
        is_loaded: Returns whether requests are being sent; the first stage begins then.
        begins: Called with each stage except the first when it begins.
    """

    abstract = True  # otherwise Locust would use it as the shape of every run

    def __init__(
        self, stages: Sequence[Stage], *, is_loaded: Callable[[], bool], begins: Callable[[Stage], None]
    ) -> None:
        super().__init__()
        self._stages = stages
        self._is_loaded = is_loaded
        self._begins = begins
        self._current: Stage | None = None

    def reset_time(self) -> None:
        """Start again with the first stage."""
        super().reset_time()
        self._current = None

    def tick(self) -> tuple[int, float] | None:
        """Return the current number of users and the spawn rate; None at the end."""
        if not self._is_loaded():
            super().reset_time()
        stage = stage_at(self._stages, self.get_run_time())
        if stage is None:
            return None
        if self._current not in {None, stage}:
            self._begins(stage)
        self._current = stage
        return stage.users, _SPAWN_RATE
