"""Preparation of a run: from the command line or Locust's page to its start."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import gevent
from flask import jsonify, request
from locust import stats
from locust.runners import MasterRunner, WorkerRunner

from load_tests import objectives, shapes
from load_tests.generator import INTERRUPTED_SECONDS, LoadGenerator
from load_tests.judge import Judge
from load_tests.options import options_from
from load_tests.pictures import PicturesError
from load_tests.sending import client_for, wait_until_ready
from load_tests.summary import rounded
from load_tests.users import HostUser, SecondHostUser, StagedShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Response
    from locust.env import Environment

    from load_tests.options import Options

EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 2, 3, 130

# For checking the client's variables in a worker, which does not know its server yet.
_PLACEHOLDER_URL = "grpc://localhost:8001"

_logger = logging.getLogger("load_tests")


def begin(environment: Environment, **_: object) -> None:
    """Prepare a process for its runs, after Locust has parsed the command line."""
    import grpc.experimental.gevent  # noqa: PLC0415 - after Locust's --processes has forked

    # Without this, a gRPC call blocks all greenlets of the process until its reply arrives.
    grpc.experimental.gevent.init_gevent()
    stats.bucket_response_time = rounded
    stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
    # The client warns once per model about untrained weights; the report names the weights.
    logging.getLogger("deeplab_client").setLevel(logging.ERROR)
    if environment.parsed_options is not None and environment.parsed_options.only_summary:
        # Locust would print its own summary below ours.
        logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)
    preparation = _Preparation(environment)
    preparation.listen_to_signals()
    try:
        preparation.prepare()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(environment.runner, MasterRunner):
            environment.runner.quit()  # otherwise the workers would wait for a minute
        sys.exit(EXIT_INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code)


class _Preparation:
    """Checks the arguments of a run, and sets its users and its shape."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._parsed = cast("Any", environment.parsed_options)
        self._takes_stop_timeout = not environment.stop_timeout
        self._judge: Judge | None = None
        self._interrupted = False

    def listen_to_signals(self) -> None:
        """End the run on SIGINT and SIGTERM, with its reports."""
        main = gevent.getcurrent()  # waits for the end of the run

        def interrupt(*_: object) -> None:
            if self._interrupted or (self._judge is not None and self._judge.has_judged):
                return  # the run is ending, which takes some seconds and writes the reports
            self._interrupted = True
            if self._judge is not None:
                self._judge.interrupted = True
            if not self._parsed.headless:
                self._parsed.autoquit = 0  # with --autostart, Locust would end the run and continue to wait
            self._environment.stop_timeout = INTERRUPTED_SECONDS
            # An exception that is raised here would be printed with its traceback first.
            gevent.get_hub().loop.run_callback(main.throw, KeyboardInterrupt)

        signal.signal(signal.SIGINT, interrupt)
        if not isinstance(self._environment.runner, WorkerRunner):
            signal.signal(signal.SIGTERM, interrupt)  # Locust handles it only after the stages of a shape

    def prepare(self) -> None:
        """Check the arguments, make the pictures, and wait for the server.

        Raises:
            SystemExit: The run cannot start.
        """
        parsed, environment = self._parsed, self._environment
        is_worker = isinstance(environment.runner, WorkerRunner)
        generator: LoadGenerator | None = None
        try:
            options = options_from(vars(parsed))
            self._check_shape(options)
            objectives.read(Path(parsed.objectives))
            if not is_worker:
                for file in filter(None, (parsed.summary, parsed.html_file)):
                    _check_writable(Path(file))
            client_for(environment.host or _PLACEHOLDER_URL, options).close()  # the client's variables may be wrong
            if not isinstance(environment.runner, MasterRunner):
                generator = LoadGenerator(environment)
            if is_worker:
                return
            if generator is not None:
                generator.make_pictures()
        except (objectives.ObjectivesError, PicturesError, OSError, ValueError) as error:
            _stop(str(error), EXIT_USAGE)
        self._judge = Judge(environment, generator)
        self._take_users(options, users=parsed.num_users or 1)
        if environment.web_ui is not None and environment.web_ui.app is not None:
            environment.web_ui.app.before_request(self._check_page)
        if parsed.headless:
            self._await_server(options)

    def _check_page(self) -> Response | None:
        """Reject invalid values of the page's form, because Locust accepts any text for any argument and starts."""
        if request.method != "POST" or not request.path.endswith("/swarm"):
            return None
        try:
            self._take_page(request.form)
        except ValueError as error:
            return jsonify({"success": False, "message": str(error), "host": self._environment.host})
        return None

    def _take_page(self, form: Mapping[str, str]) -> None:
        options = options_from({**vars(self._parsed), **form})
        self._check_shape(options)
        runner = self._environment.runner
        state = runner.state if runner is not None else ""
        if state in {"running", "spawning"}:
            return  # the page changes the number of users
        if state in {"cleanup", "stopping"}:
            raise ValueError("the previous run is still ending; try again in a moment")
        if isinstance(runner, MasterRunner) and not runner.worker_count:
            raise ValueError("no workers are connected; start at least one")
        host = form.get("host", self._environment.host)
        if not host:
            raise ValueError("no server given; fill in the host, grpc://HOST:PORT or http://HOST:PORT")
        for url in filter(None, (host, options.second_host)):
            client_for(url, options).close()
        users = form.get("user_count", "1")
        self._take_users(options, users=int(users) if users.isascii() and users.isdigit() else 1)

    def _check_shape(self, options: Options) -> None:
        if options.shape != "none" and self._parsed.reset_stats:
            raise ValueError(
                f"--reset-stats would clear each stage of --shape {options.shape} when the next begins; "
                "remove one of the two options"
            )

    def _take_users(self, options: Options, *, users: int) -> None:
        """Set the share of each kind of users, the stages of the shape, and the wait for the last replies."""
        environment, judge = self._environment, self._judge
        assert judge is not None  # noqa: S101 - only workers have no judge, and they do not set users
        if self._takes_stop_timeout:
            # Wait for requests in flight, because otherwise the slowest would be missing in the percentiles.
            environment.stop_timeout = options.timeout + 1
        HostUser.weight = 1 - options.second_share if options.second_host else 1
        SecondHostUser.weight = options.second_share if options.second_host else 0
        environment.user_classes = [kind for kind in (HostUser, SecondHostUser) if kind.weight > 0]
        judge.stages = shapes.stages_of(options, users)
        environment.shape_class = None
        if judge.stages:
            environment.shape_class = StagedShape(
                judge.stages, is_loaded=lambda: judge.is_loaded, begins=judge.stage_begins
            )
            environment.shape_class.runner = environment.runner

    def _await_server(self, options: Options) -> None:
        host, seconds = self._environment.host, self._parsed.wait_ready
        if not host:
            _stop("no server given; use --host grpc://HOST:PORT or --host http://HOST:PORT", EXIT_USAGE)
        try:
            _logger.info("waiting for %s", host)
            missing = wait_until_ready(list(filter(None, (host, options.second_host))), options, seconds=seconds)
        except ValueError as error:
            _stop(str(error), EXIT_USAGE)
        if missing is not None:
            _stop(f"{missing} (waited {seconds:g} s; see --wait-ready and --variants)", EXIT_UNREACHABLE)


def _check_writable(file: Path) -> None:
    """Raise an OSError if a report could not be written at the end of the run."""
    is_new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a"):
        pass
    if is_new:
        file.unlink()


def _stop(reason: str, code: int) -> NoReturn:
    _logger.error(reason)
    sys.exit(code)
