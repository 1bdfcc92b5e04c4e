"""The part of a run that judges it, in the master or in the only process: it writes reports and sets the exit code."""

from __future__ import annotations

import logging
import os
import platform
import time
import uuid
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gevent
import gevent.lock
from locust import log
from locust.html import get_html_report, process_html_filename
from locust.runners import STATE_STOPPED, STATE_STOPPING, MasterRunner
from locust.stats import StatsEntry

from deeplabv3 import server_statistics
from deeplabv3.console import console
from load_tests import objectives, report
from load_tests.generator import INTERRUPT, INTERRUPTED_SECONDS, OF_PICTURES, OWN_ERROR, REPORT, RUN
from load_tests.options import options_from, weights
from load_tests.replies import BETWEEN_WORKERS, WRONG_BETWEEN_WORKERS, FirstReplies, FirstReply
from load_tests.sending import protocol_of
from load_tests.summary import Kind, StageResult, Strain, Summary, all_of

if TYPE_CHECKING:
    from locust.env import Environment

    from load_tests.generator import LoadGenerator
    from load_tests.shapes import Stage

EXIT_MISSED = 1

_POLL_SECONDS = 0.05
_LAST_REPORTS_SECONDS = 5.0  # after the last requests, because a busy worker without a heartbeat may still report

_logger = logging.getLogger("load_tests")


class Judge:
    """Listens to Locust's events, and summarizes and judges the run.

    Attributes:
        interrupted: A signal ends this process.
        stages: Stages of the run's shape; set before the run starts.

    Args:
        environment: Locust's environment.
        generator: Load generator of this process; None in a master.
    """

    def __init__(self, environment: Environment, generator: LoadGenerator | None) -> None:
        self._environment = environment
        self._parsed = cast("Any", environment.parsed_options)
        self._generator = generator
        self._master = environment.runner if isinstance(environment.runner, MasterRunner) else None
        self._judging = gevent.lock.BoundedSemaphore()
        self._workers: set[str] = set()  # of this run
        self._reports: dict[str, dict[str, Any]] = {}  # the last report of each worker
        self._first_replies = FirstReplies()
        self._server_before: dict[str, Any] | None = None
        self._setting: dict[str, Any] = {}
        self._begun: list[tuple[int, float, StatsEntry]] = []  # users, start time and counts of each stage
        self._ended: float | None = None
        self._measured: Summary | None = None  # of the last run that the page started
        self.stages: list[Stage] = []
        self.interrupted = self.has_judged = False
        events = environment.events
        events.test_start.add_listener(self._start)
        events.test_stopping.add_listener(self._stopping)
        events.test_stop.add_listener(self._stopped)
        events.quitting.add_listener(self._quitting)
        events.request.add_listener(self._requested)
        events.worker_report.add_listener(self._reported)
        # A worker that joins a run gets a share of its users.
        events.worker_connect.add_listener(self._joined)

    @property
    def is_loaded(self) -> bool:
        """Whether requests are being sent; workers make their pictures first."""
        return self._master is None or bool(self._reports)

    def _joined(self, client_id: str, **_: object) -> None:
        self._workers.add(client_id)

    def stage_begins(self, stage: Stage) -> None:
        """Count requests for a new stage from now on."""
        entry = StatsEntry(self._environment.stats, f"{stage.users} users", "")
        self._begun.append((stage.users, time.perf_counter(), entry))

    def _start(self, **_: object) -> None:
        self._ended = self._measured = None
        self._reports, self._begun = {}, []
        self._workers = self._present()
        setattr(self._parsed, RUN, uuid.uuid4().hex)
        options = options_from(vars(self._parsed))
        self._first_replies = FirstReplies(tolerance=options.tolerance)
        self._setting = {
            "host": self._environment.host,
            **vars(options),
            "variants": weights(options.variants),
            **{name: getattr(self._parsed, name) for name in OF_PICTURES},
            "users": self._parsed.num_users or 1,
            "began": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "sent_by": f"{platform.node()} with {os.cpu_count()} cores, Locust {version('locust')}, "
            f"deeplab-client {version('deeplab-client')}",
        }
        self._server_before = self._server_statistics()
        for stage in self.stages[:1]:
            self.stage_begins(stage)

    def _present(self) -> set[str]:
        """Return the workers that are connected and have a heartbeat."""
        clients = self._master.clients if self._master is not None else None
        return {client.id for client in clients.ready + clients.spawning + clients.running} if clients else set()

    def _requested(
        self, response_time: float | None, response_length: int, exception: str | None = None, **_: object
    ) -> None:
        """Count a request of this process for its stage; the reports of workers contain theirs."""
        if self._begun and self._ended is None and self._master is None:
            self._begun[-1][2].log(cast("int", response_time), response_length)
            if exception is not None:
                self._begun[-1][2].log_error(exception)

    def _reported(self, client_id: str, data: dict[str, Any], **_: object) -> None:
        if self._begun:
            self._begun[-1][2].extend(StatsEntry.unserialize(data["stats_total"], self._environment.stats))
        ours = data.get(REPORT)
        if not ours or ours["run"] != getattr(self._parsed, RUN, ""):
            return
        if self._begun and not self._reports:  # the first stage begins with the first requests
            users, counts = self._begun[0][0], self._begun[0][2]
            self._begun[0] = (users, time.perf_counter() - ours["seconds"], counts)
        self._reports[client_id] = ours
        self._workers.add(client_id)
        for content in ours["first_replies"]:
            reply = FirstReply(*content)
            if not self._first_replies.agrees(reply):
                self._environment.events.request.fire(
                    request_type=protocol_of(self._environment.host or ""),
                    name=f"{reply.model.removeprefix('segment_')}, {BETWEEN_WORKERS}",
                    response_time=None,
                    response_length=0,
                    exception=WRONG_BETWEEN_WORKERS,
                    context={},
                )

    def _stopping(self, **_: object) -> None:
        self._ended = self._ended or time.perf_counter()

    def _stopped(self, **_: object) -> None:
        if self._master is not None:
            self._await_last_reports(self._master)
        if not self._parsed.headless:
            # Now, because workers may leave and somebody may press Reset before this process ends.
            self._measured = self._summary()

    def _await_last_reports(self, master: MasterRunner) -> None:
        """Wait for the last requests of the workers, because Locust waits only half a second."""
        if self.interrupted:
            master.send_message(INTERRUPT)
        if self._parsed.headless:
            master.send_message("quit")  # the workers finish their requests, report, and end
        began = time.monotonic()
        while missing := {worker for worker in self._workers if not self._report_of(worker).get("has_ended")}:
            patience = _LAST_REPORTS_SECONDS + (self._environment.stop_timeout if missing & self._present() else 0)
            if time.monotonic() > began + patience:
                break
            gevent.sleep(_POLL_SECONDS)

    def _report_of(self, worker: str) -> dict[str, Any]:
        return self._reports.get(worker, {})

    def _find_problems(self) -> list[str]:
        """Return the reasons why the load test did not run as configured."""
        problems: list[str] = []
        for worker in sorted(self._workers):
            known = self._report_of(worker)
            wrong = known.get("wrong")
            if not known.get("has_ended"):
                wrong = wrong or "did not finish"
            elif known["left"] and not self.interrupted:  # Ctrl-C in a terminal also ends the workers
                wrong = wrong or "stopped before the end of the run"
            problems += [f"worker {worker}: {wrong}"] if wrong else []
        if self._generator is not None:
            problems += filter(None, [self._report_of("here").get("wrong")])
        elif log.unhandled_greenlet_exception:
            problems.append(OWN_ERROR)
        runner = self._environment.runner
        return problems + [f"{OWN_ERROR}: {error['msg']}" for error in (runner.exceptions.values() if runner else ())]

    def _quitting(self, **_: object) -> None:
        with self._judging:  # a second SIGTERM makes Locust quit again, and must not interrupt the first time
            if not self.has_judged:
                self.has_judged = True
                self._judge()

    def _judge(self) -> None:
        """Judge the run and write the reports."""
        environment, runner = self._environment, self._environment.runner
        if runner is None or (not self._setting and not self._parsed.headless):
            return  # a page on which no run was started
        if runner.state not in {STATE_STOPPED, STATE_STOPPING} and self._setting:  # Ctrl-C or SIGTERM
            self.interrupted = True
            environment.stop_timeout = INTERRUPTED_SECONDS
            if self._master is not None:
                self._master.stop(send_stop_to_client=False)
            else:
                runner.stop()
        # Not at the end of the run, because Locust may have killed the greenlet that ended it.
        measured = self._measured or self._summary()
        verdicts = objectives.judge(measured, objectives.read(Path(self._parsed.objectives)))
        report.show(console(stderr=True), measured, verdicts)
        met = all(verdict.met for verdict in verdicts)
        if self._parsed.html_file:
            process_html_filename(self._parsed)
            locusts = get_html_report(environment, show_download_link=False)
            Path(self._parsed.html_file).write_text(report.page(locusts, measured, verdicts), encoding="utf-8")
        if self._parsed.summary:
            listed = [
                {"what": v.what, "bound": v.bound, "measured": v.measured, "missed_by": v.missed_by} for v in verdicts
            ]
            measured.save(Path(self._parsed.summary), met=met, objectives=listed)
        environment.process_exit_code = 0 if met else EXIT_MISSED

    def _summary(self) -> Summary:
        if self._generator is not None:
            self._reports["here"] = self._generator.report()
        reports = [known for known in self._reports.values() if known]
        found = self._environment.stats
        kinds = sorted((Kind.of(cast("Any", entry)) for entry in found.entries.values()), key=lambda kind: kind.title)
        failures: dict[str, int] = {}
        for error in found.errors.values():
            failures[str(error.error)] = failures.get(str(error.error), 0) + error.occurrences
        ends = [*(began for _, began, _ in self._begun[1:]), self._ended or time.perf_counter()]
        return Summary(
            setting=self._setting,
            seconds=max((known["seconds"] for known in reports), default=0.0),
            answered=sum(known["answered"] for known in reports),
            kinds=kinds,
            total=all_of(kinds),
            failures=failures,
            strain=Strain.of(reports),
            server=self._server_between(),
            stages=[
                StageResult(users, end - began, Kind.of(cast("Any", entry)))
                for (users, began, entry), end in zip(self._begun, ends, strict=False)
            ],
            problems=self._find_problems(),
            models={name: said for known in reports for name, said in known["models"].items()},
        )

    def _server_between(self) -> dict[str, Any]:
        """Return the server's statistics of the run; empty if it has none."""
        after = self._server_statistics() if self._server_before is not None else None
        if self._server_before is None or after is None:
            return {}
        found = server_statistics.between(self._server_before, after)
        if found is None:
            _logger.warning("no server statistics: the server restarted, or several servers share the address")
        return found or {}

    def _server_statistics(self) -> dict[str, Any] | None:
        try:
            return server_statistics.read(self._environment.host or "")
        except Exception as error:  # noqa: BLE001 - statistics are optional, because a proxy may block them
            _logger.info("cannot read the server's statistics: %s", error)
            return None
