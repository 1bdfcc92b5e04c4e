"""A master and its workers: pictures made before a run, last reports after it, and nobody missing in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gevent.lock import BoundedSemaphore
    from locust.rpc import Message
    from locust.runners import MasterRunner, WorkerRunner

_PREPARE, _PREPARED = "deeplab-prepare", "deeplab-prepared"
_FINISH, _FINISHED, _LEFT = "deeplab-finish", "deeplab-finished", "deeplab-left"
_PREPARE_SECONDS = 120.0
_POLL_SECONDS = 0.05
_ASK_AGAIN_SECONDS = 1.0


class Crew:
    """The workers, for their master.

    Args:
        runner: Locust's.
    """

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self._began: set[str] = set()  # the workers of this run
        self._prepared: dict[str, str] = {}  # what is wrong with each, empty for nothing
        self._finished: dict[str, str] = {}  # likewise
        self._left: set[str] = set()  # who ended by itself
        self._run = 0
        runner.register_message(_PREPARED, self._is_prepared)
        runner.register_message(_FINISHED, self._is_finished)
        runner.register_message(_LEFT, self._leaves)
        runner.environment.events.worker_connect.add_listener(self._connects)

    def wait(self, number: int, *, seconds: float) -> bool:
        """Wait for workers; return whether so many came.

        Args:
            number: How many.
            seconds: For how long at most; 0 for any time.
        """
        deadline = time.monotonic() + (seconds or float("inf"))
        while len(self._runner.clients.ready) < number:
            if time.monotonic() > deadline:
                return False
            gevent.sleep(_POLL_SECONDS)
        return True

    def prepare(self, arguments: Mapping[str, Any]) -> list[str]:
        """Have each worker prepare its run; return what is wrong with whom."""
        self._prepared.clear()
        self._finished.clear()
        self._left.clear()
        self._run += 1
        self._began = self.present
        deadline = time.monotonic() + _PREPARE_SECONDS
        asked = 0.0
        while (missing := (self._began & self.present) - self._prepared.keys()) and time.monotonic() < deadline:
            if time.monotonic() > asked + _ASK_AGAIN_SECONDS:  # a worker reports as ready before it listens to us
                asked = time.monotonic()
                for worker in missing:
                    self._runner.send_message(_PREPARE, dict(arguments), client_id=worker)
            gevent.sleep(_POLL_SECONDS)
        silent = "left, or was not prepared in time"
        wrong = {worker: self._prepared.get(worker, silent) for worker in sorted(self._began)}
        return [f"worker {worker}: {said}" for worker, said in wrong.items() if said]

    def finish(self, seconds: float, *, patience: float) -> list[str]:
        """Have each worker end its requests and report; return what is wrong with whom.

        Args:
            seconds: That the last requests may take.
            patience: Seconds beyond that.
        """
        expected = self._began | self.present
        began = time.monotonic()
        asked = 0.0
        while (missing := expected - self._finished.keys() - self._left) and (
            time.monotonic() < began + seconds + patience
        ):
            if time.monotonic() > asked + _ASK_AGAIN_SECONDS:
                asked = time.monotonic()
                for worker in missing & self.present:
                    self._runner.send_message(_FINISH, {"seconds": seconds, "run": self._run}, client_id=worker)
            # One without a heartbeat may be busy, and report a moment later.
            if not missing & self.present and time.monotonic() > began + patience:
                break
            gevent.sleep(_POLL_SECONDS)
        wrong = {worker: self._finished.get(worker, "did not finish") for worker in sorted(expected - self._left)}
        return [f"worker {worker}: {said}" for worker, said in wrong.items() if said]

    @property
    def deserters(self) -> list[str]:
        """What is wrong with the workers that left, unless the master was told to end as well."""
        return [f"worker {worker}: left before the end" for worker in sorted(self._left)]

    @property
    def present(self) -> set[str]:
        """The workers that are connected and have a heartbeat."""
        clients = self._runner.clients
        return {client.id for client in clients.ready + clients.spawning + clients.running}

    def _connects(self, client_id: str, **_: object) -> None:
        self._began.add(client_id)  # one that comes into a run under way is given a share of its users

    def _is_prepared(self, msg: Message, **_: object) -> None:
        self._prepared[msg.node_id] = cast("dict[str, str]", msg.data)["wrong"]

    def _is_finished(self, msg: Message, **_: object) -> None:
        data = cast("dict[str, Any]", msg.data)
        if data["run"] == self._run:
            self._finished[msg.node_id] = data["wrong"]

    def _leaves(self, msg: Message, **_: object) -> None:
        self._left.add(msg.node_id)


def serve(
    runner: WorkerRunner,
    *,
    prepare: Callable[[Mapping[str, Any]], str],
    finish: Callable[[float], tuple[Mapping[str, Any], str]],
    reporting: BoundedSemaphore,
) -> None:
    """Have a worker do what its master asks.

    Args:
        runner: Locust's.
        prepare: Takes the master's arguments; returns what is wrong, empty for nothing.
        finish: Ends the requests, which may take some seconds; returns the last report, and what was wrong. May be
            asked again.
        reporting: Held until the last report is sent.
    """

    def prepared(msg: Message, **_: object) -> None:
        runner.send_message(_PREPARED, {"wrong": prepare(cast("dict[str, Any]", msg.data))})

    def finished(msg: Message, **_: object) -> None:
        asked = cast("dict[str, Any]", msg.data)
        with reporting:
            report, wrong = finish(asked["seconds"])
            runner.send_message("stats", dict(report))
            runner.send_message(_FINISHED, {"wrong": wrong, "run": asked["run"]})

    runner.register_message(_PREPARE, prepared, concurrent=True)
    runner.register_message(_FINISH, finished, concurrent=True)


def leave(runner: WorkerRunner, report: Mapping[str, Any]) -> None:
    """Tell the master that a worker ends by itself, after its last report."""
    runner.send_message("stats", dict(report))
    runner.send_message(_LEFT)
