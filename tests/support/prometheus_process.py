"""A Prometheus for one test, with the project's rules in seconds instead of minutes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import yaml
from monitoring_files import FOLDER, PROMETHEUS, RULES
from triton_process import wait_until

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

WINDOW_SECONDS = 10
WINDOW = f"{WINDOW_SECONDS}s"


def hurried(text: str) -> str:
    """Return rules with windows of seconds instead of minutes and almost immediate alerts, but the same thresholds."""
    windows = re.sub(r"\[\d+m\]", f"[{WINDOW}]", text).replace("(5 * 60)", str(WINDOW_SECONDS))
    return re.sub(r"for: \d+m", "for: 2s", windows)


class PrometheusProcess:
    """A running Prometheus that scrapes one server every second.

    Args:
        folder: where it keeps configuration, data and log.
        target: host and port of the server's metrics.
    """

    def __init__(self, folder: Path, *, target: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules.yml").write_text(hurried(RULES.read_text()))
        self.log = folder / "prometheus.log"
        options = (
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([str(PROMETHEUS / "prometheus"), *options], stdout=log, stderr=log)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query, without NaN."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own address
            found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
        return [sample for sample in found if sample["value"][1] != "NaN"]

    def value(self, expression: str) -> float:
        """Return the single sample of an expression, or NaN without samples."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else float("nan")

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')}

    def is_ready(self) -> bool:
        """Return whether Prometheus answers; fail if it has ended."""
        assert self._process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as reply:  # noqa: S310 - our own address
                return reply.status == 200
        except URLError:
            return False

    def __enter__(self) -> PrometheusProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        try:
            wait_until(self.is_ready, what="Prometheus ready")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()
            self._process.wait()
