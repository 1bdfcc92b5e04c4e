"""One run from the command line to the exit code, in a process that makes requests, a master, or both in one."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gevent
import gevent.event
import gevent.lock
from locust import stats
from locust.html import get_html_report
from locust.runners import STATE_RUNNING, STATE_SPAWNING, STATE_STOPPED, MasterRunner, WorkerRunner
from rich.console import Console

from load_tests import crew, histogram, objectives, page, server_statistics, shapes, summary
from load_tests.crew import Crew
from load_tests.options import options_from, weights
from load_tests.pictures import PicturesError, from_folder, made
from load_tests.replies import BETWEEN_WORKERS, WRONG_BETWEEN_WORKERS, FirstReplies
from load_tests.sending import Sending, client_for, first_reply_message, first_reply_of, protocol_of, wait_until_ready
from load_tests.strain import together
from load_tests.users import HostUser, SecondHostUser, SegmentationUser, StagedShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from locust.env import Environment
    from locust.rpc import Message

    from load_tests.options import Options
    from load_tests.pictures import Picture
    from load_tests.replies import FirstReply

EXIT_MISSED, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3

_TICK_SECONDS = 0.05
_INTERRUPTED_SECONDS = 2.0  # who presses Ctrl-C does not wait for a slow server
_LAST_REPORTS_SECONDS = 5.0  # beyond the last requests
_FIRST_REPLY, _STRAIN = "deeplab-first-reply", "deeplab"
# Of the arguments, those that make the pictures; Locust gives workers the master's with each run.
_OF_PICTURES = ("pictures", "kinds", "seed")
# Where a worker's client goes that nobody has told yet.
_SOMEWHERE = "grpc://localhost:8001"
# A pipe has no width; this one holds the table of a run.
_COLUMNS = 120

_logger = logging.getLogger("load_tests")


class Run:
    """What listens to Locust's events.

    Args:
        environment: Locust's.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._parsed = cast("Any", environment.parsed_options)
        self._sends = not isinstance(environment.runner, MasterRunner)
        self._judges = not isinstance(environment.runner, WorkerRunner)
        self._pictures: list[Picture] = []
        self._made_of: dict[str, Any] = {}
        self._is_prepared = gevent.event.Event()
        self._preparing = gevent.lock.BoundedSemaphore()
        self._reporting = gevent.lock.BoundedSemaphore()
        self._signal: signal.Signals | None = None  # that ends this process
        self._has_finished = False  # this worker, its run
        self._judging = gevent.lock.BoundedSemaphore()
        self._has_judged = False
        self._main = gevent.getcurrent()  # which waits for the end of the run
        self._wrong = ""  # with this worker, in this run
        self._measured: summary.Summary | None = None  # of the last run, when it has ended
        self._sending: Sending | None = None
        self._ticker: gevent.Greenlet[[Sending], NoReturn] | None = None
        self._strains: dict[str, dict[str, Any]] = {}  # the master's, by worker
        self._crew = Crew(environment.runner) if isinstance(environment.runner, MasterRunner) else None
        self._problems: list[str] = []
        self._agreed = FirstReplies()
        self._server_before: dict[str, Any] | None = None
        self._server: dict[str, Any] = {}
        self._setting: dict[str, Any] = {}
        self._stages: list[shapes.Stage] = []
        # For each stage that has begun: its users, when, and what had been counted by then.
        self._begun: list[tuple[int, float, summary.Kind]] = []
        self._began = self._ended = 0.0
        self._counted = summary.all_of([])  # by the end, before the last replies are waited for
        self._forgotten = summary.all_of([])  # counted before a reset of Locust's
        self._is_preparing = self._is_ending = False
        self._takes_stop_timeout = not environment.stop_timeout

    @classmethod
    def begin(cls, environment: Environment, **_: object) -> None:
        """Prepare a process for its runs, when Locust has read the command line."""
        import grpc.experimental.gevent  # noqa: PLC0415 after Locust's --processes has forked

        # Without it a call of gRPC stops all greenlets of the process until its reply is there.
        grpc.experimental.gevent.init_gevent()
        stats.bucket_response_time = histogram.rounded
        stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
        # The client says that of every model once, and Locust's page and report have no place for it.
        logging.getLogger("deeplab_client").setLevel(logging.ERROR)
        if environment.parsed_options is not None and environment.parsed_options.only_summary:
            # The summary is ours; Locust would print its own below it.
            logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)
        run = cls(environment)
        run.listen()
        signal.signal(signal.SIGINT, run._interrupt)
        if run._judges:  # Locust listens to SIGTERM only when the stages of a shape are over
            signal.signal(signal.SIGTERM, run._interrupt)
        try:
            run.prepare()
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(environment.runner, MasterRunner):
                environment.runner.quit()  # or the workers would wait for a minute
            sys.exit(128 + (run._signal or 0) if isinstance(end, KeyboardInterrupt) else end.code)
        runner = environment.runner
        if isinstance(runner, WorkerRunner) and runner.worker_state in {STATE_SPAWNING, STATE_RUNNING}:
            run._start()  # the run had begun before this process listened

    def _interrupt(self, number: int, *_: object) -> None:
        if self._signal is not None or self._has_judged:
            return  # the end takes some seconds, and writes the reports
        self._signal = signal.Signals(number)
        if not self._parsed.headless:
            self._parsed.autoquit = 0  # with --autostart, Locust would end the run and wait
        self._environment.stop_timeout = _INTERRUPTED_SECONDS
        # What is raised here would be printed with its traceback before it gets there.
        gevent.get_hub().loop.run_callback(self._main.throw, KeyboardInterrupt)

    def prepare(self) -> None:
        """Check what can be checked, make the pictures, and wait for the server.

        Raises:
            SystemExit: The run cannot begin.
        """
        parsed, environment = self._parsed, self._environment
        try:
            options = options_from(vars(parsed))
            self._check_shape(options)
            objectives.read(Path(parsed.objectives))
            if self._judges:
                for file in filter(None, (parsed.summary, parsed.html_file)):
                    _check_writable(Path(file))
            client_for(environment.host or _SOMEWHERE, options).close()  # its own variables may be wrong
            if self._sends and self._judges:
                self._make_pictures()
        except (objectives.ObjectivesError, PicturesError, OSError, ValueError) as error:
            _stop(str(error), EXIT_USAGE)
        environment.user_classes = [HostUser, SecondHostUser]  # a worker is told how many of each
        if self._judges:
            self._take_users(options, users=parsed.num_users or 1)
            page.guard(environment, self._take_page)
            if parsed.headless:
                self._await_server(options)
                # Before Locust begins to count the time of the run. Where too few come, Locust says so.
                if self._crew and self._crew.wait(parsed.expect_workers, seconds=parsed.expect_workers_max_wait):
                    self._crew.prepare(self._of_pictures())
        self._is_prepared.set()

    def _take_page(self, form: Mapping[str, str]) -> None:
        """Prepare a run from the page.

        Raises:
            ValueError: It cannot be made.
        """
        options = options_from({**vars(self._parsed), **form})
        self._check_shape(options)
        runner = self._environment.runner
        state = runner.state if runner is not None else ""
        if state in {"running", "spawning"}:
            return  # the page changes the number of users
        if state in {"cleanup", "stopping"} or self._is_preparing:
            raise ValueError("another run is beginning or ending: wait a moment")
        if self._crew and not self._crew.present:
            raise ValueError("there are no workers")
        for url in filter(None, (form.get("host", self._environment.host), options.second_host)):
            client_for(url, options).close()
        if not form.get("host", self._environment.host):
            raise ValueError("there is no server to ask: fill in the host, grpc://HOST:PORT or http://HOST:PORT")
        users = form.get("user_count", "1")
        self._take_users(options, users=int(users) if users.isascii() and users.isdigit() else 1)

    def _check_shape(self, options: Options) -> None:
        if options.shape != "none" and self._parsed.reset_stats:
            raise ValueError(
                f"--reset-stats forgets each stage when the next begins: leave it out of --shape {options.shape}"
            )

    def _take_users(self, options: Options, *, users: int) -> None:
        """Set how many users there are of each kind, how their number changes, and how long their last replies take."""
        if self._takes_stop_timeout:
            # Requests under way are waited for, or the slowest would be missing from the percentiles.
            self._environment.stop_timeout = options.timeout + 1
        HostUser.weight = 1 - options.second_share if options.second_host else 1
        SecondHostUser.weight = options.second_share if options.second_host else 0
        self._environment.user_classes = [kind for kind in (HostUser, SecondHostUser) if kind.weight > 0]
        self._stages = []
        self._environment.shape_class = None
        if options.shape == "step":
            self._stages = shapes.step(users, stages=options.stages, seconds=options.stage_time)
        elif options.shape == "spike":
            self._stages = shapes.spike(users, factor=options.spike_factor, seconds=options.stage_time)
        if self._stages:
            shape = self._environment.shape_class = StagedShape(self._stages, changed=self._stage_begins)
            shape.runner = self._environment.runner

    def _await_server(self, options: Options) -> None:
        seconds = self._parsed.wait_ready
        if not self._environment.host:
            _stop("there is no server to ask: give --host grpc://HOST:PORT or http://HOST:PORT", EXIT_USAGE)
        try:
            missing = wait_until_ready(self._urls(), options, seconds=seconds)
        except ValueError as error:
            _stop(str(error), EXIT_USAGE)
        if missing is not None:
            _stop(f"{missing} (waited {seconds:g} s, see --wait-ready and --variants)", EXIT_UNREACHABLE)

    def listen(self) -> None:
        """Listen to Locust's events."""
        runner, events = self._environment.runner, self._environment.events
        events.test_start.add_listener(self._start)
        events.test_stopping.add_listener(self._stopping)
        events.test_stop.add_listener(self._stopped)
        events.quitting.add_listener(self._quitting if self._judges else self._leave)
        self._outlive_resets()
        if isinstance(runner, WorkerRunner):
            events.report_to_master.add_listener(self._report)
            crew.serve(runner, prepare=self._prepare, finish=self._finish, reporting=self._reporting)
        elif isinstance(runner, MasterRunner):
            events.worker_report.add_listener(self._reported)
            runner.register_message(_FIRST_REPLY, self._worker_first_reply)

    def _outlive_resets(self) -> None:
        """Keep what the stages have counted when Locust's page begins its counts anew."""
        counts = self._environment.stats
        forget = counts.reset_all

        def reset_all() -> None:
            if isinstance(self._environment.runner, WorkerRunner):
                return  # --reset-stats would have it forget what it has not reported yet
            self._forgotten = self._count()
            forget()

        counts.reset_all = reset_all

    def _start(self, **_: object) -> None:
        self._is_prepared.wait()
        self._is_preparing = True
        try:
            self._begin_run()
        finally:
            self._is_preparing = False

    def _begin_run(self) -> None:
        options = options_from(vars(self._parsed))
        self._strains.clear()
        self._forgotten = summary.all_of([])
        self._problems = self._crew.prepare(self._of_pictures()) if self._crew else []
        self._agreed = FirstReplies(tolerance=options.tolerance)
        self._setting = {
            "host": self._environment.host,
            **{name: getattr(options, name) for name in options.__slots__},
            "users": self._parsed.num_users or 1,
        }
        if self._judges:
            self._measured = None
            self._server, self._server_before = {}, self._server_statistics()
        if self._sends:
            self._wrong = ""
            try:
                self._make_pictures()
            except (PicturesError, OSError) as error:  # in a worker that came when the others had been asked
                self._wrong, self._pictures, self._made_of = str(error), [], {}
                _logger.error("nothing is sent from here: %s", error)  # noqa: TRY400 it says what to do
                if self._judges:
                    self._problems.append(self._wrong)
            if self._sending is not None:
                self._sending.close()
            self._sending = SegmentationUser.sending = Sending(
                self._environment,
                options=options,
                # Locust hands the users of a worker that leaves to others, also to those that are done.
                pictures=[] if self._has_finished else self._pictures,
                kinds=weights(self._parsed.kinds),
                first_reply=self._tell_first_reply,
            )
            SegmentationUser.has_begun.set()
            self._ticker = gevent.spawn(self._tick, self._sending)
        self._began = self._ended = time.perf_counter()
        self._begun = [(stage.users, self._began, summary.all_of([])) for stage in self._stages[:1]]
        self._is_ending = False

    def _of_pictures(self) -> dict[str, Any]:
        return {name: getattr(self._parsed, name) for name in _OF_PICTURES}

    def _prepare(self, arguments: Mapping[str, Any]) -> str:
        """Make a worker's pictures as the master was told; return what is wrong."""
        self._is_prepared.wait()
        self._has_finished = False
        with self._preparing:
            vars(self._parsed).update(arguments)
            try:
                self._make_pictures()
            except (PicturesError, OSError) as error:
                return str(error)
        return ""

    def _stage_begins(self, stage: shapes.Stage) -> None:
        self._begun.append((stage.users, time.perf_counter(), self._count()))

    def _count(self) -> summary.Kind:
        return summary.all_of([self._forgotten, *summary.kinds_of(self._environment.stats.entries.values())])

    def _tick(self, sending: Sending) -> NoReturn:
        """Measure how late this process does what it means to do at a certain moment."""
        while True:
            due = time.perf_counter() + _TICK_SECONDS
            gevent.sleep(_TICK_SECONDS)
            sending.strain.late(time.perf_counter() - due)

    def _tell_first_reply(self, reply: FirstReply, picture: str, model: str) -> None:
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(_FIRST_REPLY, first_reply_message(reply, picture, model))

    def _stopping(self, **_: object) -> None:
        """Have the workers end their requests and report, before Locust stops listening to them."""
        if self._is_ending:
            return  # Ctrl-C while the last replies are waited for
        self._is_ending = True
        self._ended, self._counted = time.perf_counter(), self._count()
        if self._sending is not None:
            self._sending.end()
        if self._crew:
            seconds = self._environment.stop_timeout
            wrong = self._crew.finish(seconds, patience=_LAST_REPORTS_SECONDS)
            self._problems += [problem for problem in wrong if problem not in self._problems]
            self._counted = self._count()  # before, it was of up to 3 s ago

    def _finish(self, seconds: float) -> tuple[dict[str, Any], str]:
        """End a worker's requests, which takes some seconds at most, and return its last report and what was wrong."""
        runner = self._environment.runner
        assert isinstance(runner, WorkerRunner)  # noqa: S101 who else is asked
        self._has_finished = True
        if self._sending is not None:
            self._sending.end()
        if runner.state in {STATE_SPAWNING, STATE_RUNNING}:
            self._environment.stop_timeout = seconds
            runner.stop()
            self._environment.stop_timeout = 0  # Locust sleeps that long afterwards; the master sends it with each run
        data: dict[str, Any] = {}
        self._environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
        return data, self._wrong

    def _stopped(self, **_: object) -> None:
        if self._sending is not None:
            self._sending.drain(self._environment.stop_timeout)
        if self._ticker is not None:
            self._ticker.kill()
        if self._judges and self._server_before is not None:
            after = self._server_statistics()
            self._server = {} if after is None else server_statistics.between(self._server_before, after)
            if after and not self._server:
                _logger.warning("the server's statistics are left out: it restarted, or several share the address")
        if self._judges:
            if self._crew and self._signal is None:  # Ctrl-C in a terminal ends the workers of --processes as well
                self._problems += self._crew.deserters
            self._measured = self._summary()  # the page's Reset may come afterwards

    def _leave(self, **_: object) -> None:
        """Report, where a worker was told to end and its master was not."""
        runner = self._environment.runner
        assert isinstance(runner, WorkerRunner)  # noqa: S101 who else listens
        with self._reporting:
            if runner.state in {STATE_SPAWNING, STATE_RUNNING}:
                crew.leave(runner, self._finish(_INTERRUPTED_SECONDS)[0])

    def _quitting(self, **_: object) -> None:
        with self._judging:  # a second SIGTERM has Locust end a second time, and must not end the first
            if not self._has_judged:
                self._has_judged = True
                self._judge()

    def _judge(self) -> None:
        """Judge the run, and write down what there is."""
        environment, runner = self._environment, self._environment.runner
        if runner is None:
            return
        if runner.state != STATE_STOPPED and self._setting:  # Ctrl-C or SIGTERM
            self._signal = self._signal or signal.SIGTERM
            environment.stop_timeout = _INTERRUPTED_SECONDS
            runner.stop()
        if not self._setting and not self._parsed.headless:
            return  # a page where nobody started anything
        if self._parsed.html_file:  # which Locust writes after Ctrl-C and not after SIGTERM
            file = Path(self._parsed.html_file)
            file.write_text(get_html_report(environment, show_download_link=False), encoding="utf-8")
        measured = self._measured or self._summary()
        verdicts = objectives.judge(measured, objectives.read(Path(self._parsed.objectives)))
        console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _COLUMNS)
        if measured.stages:
            console.print(measured.stages_table())
        console.print(measured.table())
        for problem in measured.problems:
            console.print(f"[bold red]{problem}[/]")
        for reason, count in sorted(measured.failures.items(), key=lambda item: -item[1]):
            console.print(f"[red]{count}[/] x {reason}")
        strain = measured.strain
        console.print(
            f"load generator: busiest of {strain.processes} process(es) at {strain.busiest_cpu:.0%} of a core, "
            f"late by {1000 * strain.late_p99:.0f} ms (p99)"
            + (f", at most {strain.most_unfinished} requests unfinished" if strain.most_unfinished else "")
        )
        if strain.warning is not None:
            console.print(f"[bold yellow]{strain.warning}[/]")
        console.print(objectives.table(verdicts))
        met = all(verdict.met for verdict in verdicts)
        if self._parsed.summary:
            listed = [
                {"what": v.what, "bound": v.bound, "measured": v.measured, "missed_by": v.missed_by} for v in verdicts
            ]
            measured.save(Path(self._parsed.summary), met=met, objectives=listed)
        environment.process_exit_code = 0 if met else EXIT_MISSED

    def _summary(self) -> summary.Summary:
        found = self._environment.stats
        kinds = summary.kinds_of(found.entries.values())
        failures: dict[str, int] = {}
        for error in found.errors.values():
            failures[str(error.error)] = failures.get(str(error.error), 0) + error.occurrences
        if self._sending is not None:
            self._strains["here"] = self._sending.strain.report()
        total = summary.all_of(kinds)
        ends = [(moment, counted) for _, moment, counted in self._begun[1:]] + [(self._ended, self._counted)]
        return summary.Summary(
            setting=self._setting,
            seconds=self._ended - self._began,
            answered=sum(strain["answered"] for strain in self._strains.values()),
            kinds=kinds,
            total=total,
            failures=failures,
            strain=together(self._strains.values()),
            server=self._server,
            stages=[
                summary.StageResult(users, end - begin, summary.between(before, counted))
                for (users, begin, before), (end, counted) in zip(self._begun, ends, strict=False)
            ],
            problems=self._problems,
        )

    def _report(self, client_id: str, data: dict[str, Any], **_: object) -> None:  # noqa: ARG002 Locust passes it
        if self._sending is not None:
            data[_STRAIN] = self._sending.strain.report()

    def _reported(self, client_id: str, data: dict[str, Any], **_: object) -> None:
        if _STRAIN in data:
            self._strains[client_id] = data[_STRAIN]

    def _worker_first_reply(self, msg: Message, **_: object) -> None:
        reply, picture, model = first_reply_of(cast("dict[str, Any]", msg.data))
        if not self._agreed.agrees(reply, picture=picture, model=model):
            self._environment.events.request.fire(
                request_type=protocol_of(self._environment.host or ""),
                name=f"{model.removeprefix('segment_')}, {BETWEEN_WORKERS}",
                response_time=None,
                response_length=0,
                exception=WRONG_BETWEEN_WORKERS,
                context={},
            )

    def _server_statistics(self) -> dict[str, Any] | None:
        try:
            return server_statistics.read(self._environment.host or "")
        except Exception as error:  # noqa: BLE001 whatever it is, a run goes without: a proxy may not let it through
            _logger.info("no statistics of the server: %s", error)
            return None

    def _make_pictures(self) -> None:
        """Make the pictures of the arguments, unless they are made already."""
        wanted = self._of_pictures()
        if wanted == self._made_of:
            return
        folder, kinds = self._parsed.pictures, weights(self._parsed.kinds)

        def make() -> list[Picture] | PicturesError | OSError:
            try:
                return from_folder(Path(folder)) if folder else made(kinds, seed=self._parsed.seed)
            except (PicturesError, OSError) as error:
                return error  # gevent would print it with its traceback

        # In a thread, or a worker would miss its heartbeats and be given up.
        pictures = gevent.get_hub().threadpool.apply(make)
        if isinstance(pictures, Exception):
            raise pictures
        self._pictures = [picture for picture in pictures if picture.kind in kinds]
        if not self._pictures:
            raise PicturesError(f"{folder} holds no pictures of the kinds {', '.join(kinds)}: see --kinds")
        self._made_of = wanted

    def _urls(self) -> Sequence[str]:
        return [url for url in (self._environment.host, self._parsed.second_host) if url]


def _check_writable(file: Path) -> None:
    """Raise an OSError where a report could not be written at the end of the run."""
    is_new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a"):
        pass
    if is_new:
        file.unlink()


def _stop(reason: str, code: int) -> NoReturn:
    _logger.error(reason)
    sys.exit(code)
