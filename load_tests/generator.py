"""The part of a run that sends requests: in a worker, or in the only process."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import gevent
from locust import log
from locust.runners import STATE_RUNNING, STATE_SPAWNING, WorkerRunner

from load_tests.options import options_from, weights
from load_tests.pictures import Picture, PicturesError, from_folder, made
from load_tests.sending import Sending
from load_tests.users import SegmentationUser

if TYPE_CHECKING:
    from locust.env import Environment

INTERRUPTED_SECONDS = 2.0  # after Ctrl-C, do not wait longer for a slow server
REPORT = "deeplab"  # key of our part of a worker's report
INTERRUPT = "deeplab_interrupt"  # message of a master to its workers when a signal ends it, before `quit`
RUN = "deeplab_run"  # argument that tells the workers the run that their reports belong to
OF_PICTURES = ("pictures", "kinds", "seed")  # arguments that determine the pictures
OWN_ERROR = "the load test itself failed; see its log"

_TICK_SECONDS = 0.05

_logger = logging.getLogger("load_tests")


class LoadGenerator:
    """Listens to Locust's events, and makes the users of this process send.

    Args:
        environment: Locust's environment.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._parsed = cast("Any", environment.parsed_options)
        self._pictures: list[Picture] = []
        self._pictures_arguments: dict[str, Any] = {}
        self._sending: Sending | None = None
        self._ticker: gevent.Greenlet[[Sending], NoReturn] | None = None
        self._run = self._wrong = ""
        self._left_early = False
        events, runner = environment.events, environment.runner
        events.test_start.add_listener(self._start)
        events.test_stopping.add_listener(self._stopping)
        events.test_stop.add_listener(self._stopped)
        if isinstance(runner, WorkerRunner):
            events.report_to_master.add_listener(self._report)
            events.quitting.add_listener(self._quitting)
            runner.register_message(INTERRUPT, self._interrupted)
            if runner.worker_state in {STATE_SPAWNING, STATE_RUNNING}:
                self._start()  # the run had begun before this process listened

    def make_pictures(self) -> None:
        """Make the pictures that the arguments describe, unless they exist already.

        Raises:
            PicturesError: There are none.
            OSError: They cannot be read.
        """
        wanted = {name: getattr(self._parsed, name) for name in OF_PICTURES}
        if wanted == self._pictures_arguments:
            return
        folder, kinds = self._parsed.pictures, weights(self._parsed.kinds)

        def make() -> list[Picture] | PicturesError | OSError:
            try:
                return from_folder(Path(folder)) if folder else made(kinds, seed=self._parsed.seed)
            except (PicturesError, OSError) as error:
                return error  # gevent would print an exception with its traceback

        # In a thread, because a worker that misses its heartbeats is dropped.
        pictures = gevent.get_hub().threadpool.apply(make)
        if isinstance(pictures, Exception):
            raise pictures
        self._pictures = [picture for picture in pictures if picture.kind in kinds]
        if not self._pictures:
            raise PicturesError(
                f"{folder} has no pictures of the kinds {', '.join(kinds)}; change --kinds or --pictures"
            )
        self._pictures_arguments = wanted

    def report(self) -> dict[str, Any]:
        """Return the results for the process that judges; empty before the first run."""
        if self._sending is None:
            return {}
        wrong = self._wrong or (OWN_ERROR if log.unhandled_greenlet_exception else "")
        return self._sending.report() | {"run": self._run, "wrong": wrong, "left": self._left_early}

    def _report(self, data: dict[str, Any], **_: object) -> None:
        data[REPORT] = self.report()

    def _start(self, **_: object) -> None:
        self._run, self._left_early, self._wrong = getattr(self._parsed, RUN, ""), False, ""
        self._sending = None
        try:
            self.make_pictures()
        except (PicturesError, OSError) as error:
            self._wrong, self._pictures, self._pictures_arguments = str(error), [], {}
            _logger.error("this process sends no requests: %s", error)  # noqa: TRY400 - the message names the remedy
        self._sending = SegmentationUser.sending = self._sending_from(self._pictures)
        SegmentationUser.has_begun.set()
        self._ticker = gevent.spawn(_tick, self._sending)

    def _sending_from(self, pictures: list[Picture]) -> Sending:
        options, kinds = options_from(vars(self._parsed)), weights(self._parsed.kinds)
        return Sending(self._environment, options=options, pictures=pictures, kinds=kinds)

    def _stopping(self, **_: object) -> None:
        if self._sending is not None:
            self._sending.end()

    def _stopped(self, **_: object) -> None:
        if self._sending is not None:
            self._sending.drain(self._environment.stop_timeout)
            self._sending.has_ended = True
        if self._ticker is not None:
            self._ticker.kill()
        if isinstance(self._environment.runner, WorkerRunner):
            self._environment.stop_timeout = 0  # Locust would sleep for it now; the master sends it with each run

    def _interrupted(self, **_: object) -> None:
        """Shorten the wait for requests in flight, because a signal ends the master."""
        self._environment.stop_timeout = INTERRUPTED_SECONDS

    def _quitting(self, **_: object) -> None:
        """Send the last report of a worker, whose end a signal may cause before the master does, or interrupt."""
        runner, environment = self._environment.runner, self._environment
        if not isinstance(runner, WorkerRunner) or not self._run:
            return
        if self._sending is None:  # the pictures are not ready yet
            self._sending = self._sending_from([])
        left_early = self._left_early or not self._sending.is_over  # a second signal may come
        environment.stop_timeout = INTERRUPTED_SECONDS
        runner.stop()
        # Locust's stop does nothing before there are users, nor while another greenlet is stopping them.
        self._stopping()
        self._stopped()
        self._left_early = left_early
        data: dict[str, Any] = {}
        environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
        runner.send_message("stats", data)


def _tick(sending: Sending) -> NoReturn:
    """Measure how late this process runs actions that are due at a certain time."""
    while True:
        due = time.perf_counter() + _TICK_SECONDS
        gevent.sleep(_TICK_SECONDS)
        sending.late(time.perf_counter() - due)
