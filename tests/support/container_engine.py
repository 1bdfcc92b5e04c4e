"""A container engine for a test run: dockerd with its own data, which leaves no process and no firewall rule behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil
from triton_process import alive, wait_until

if TYPE_CHECKING:
    from types import TracebackType

BRIDGE = Path("/sys/class/net/docker0")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# The tables of a machine without rules, because iptables-save leaves out empty tables.
NO_RULES = {
    "filter": "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n",
    "nat": "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n",
}


class Engine:
    """dockerd, which starts with the context, and ends with it together with everything that it started.

    Args:
        data: the folder of its images and of what builds have cached, kept for the next run.
    """

    def __init__(self, data: Path) -> None:
        self._data = data

    def __enter__(self) -> Engine:  # noqa: PYI034 - typing.Self needs Python 3.11
        missing = [name for name in ("dockerd", "iptables-save", "ip") if shutil.which(name) is None]
        assert not missing, f"not found: {', '.join(missing)}; apt-get install docker.io iptables iproute2"
        assert os.geteuid() == 0, "dockerd needs root"
        assert not BRIDGE.exists(), "docker0 exists: another engine runs here, or has left it; stop it first"
        self._data.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="deeplab-engine-"))
        self.host = f"unix://{self._folder}/docker.sock"
        self._rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout  # noqa: S607 - wherever it is
        self._forwarding = FORWARDING.read_text()
        self._log = self._folder.with_suffix(".log")
        # It has its own mounts, and it ends when this process ends for any reason.
        wrapper = ["unshare", "--mount", "--propagation", "slave", "setpriv", "--pdeathsig", "TERM"]
        options = {"data-root": self._data, "exec-root": self._folder / "exec", "pidfile": self._folder / "pid"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*wrapper, "dockerd", "--host", self.host, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, what=f"dockerd answers; {self._log}", seconds=60)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.docker("container", "prune", "--force")
        self.docker("image", "prune", "--force")
        self._end()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        return subprocess.run(self._command("version"), capture_output=True, check=False).returncode == 0

    def _command(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self.host, *arguments]

    def docker(self, *arguments: str, check: bool = True, stdin: IO[bytes] | None = None, timeout: float = 120) -> str:
        """Return the output of a command of Docker's client, stderr after stdout."""
        done = subprocess.run(
            self._command(*arguments), stdin=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout + done.stderr

    def family(self) -> list[psutil.Process]:
        """Return the processes of the engine and of its containers, most of which have no parent here."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(str(self._folder) in word for word in process.cmdline()):
                    found |= {process, *process.children(recursive=True)}
        return list(found)

    def _end(self) -> None:
        family = self.family()
        self._process.terminate()
        try:
            self._process.wait(60)
            wait_until(
                lambda: not any(map(alive, family)), what=f"ended: {[p for p in family if alive(p)]}", seconds=20
            )
        finally:
            self._process.kill()
            for process in filter(alive, family):
                process.kill()
            # dockerd leaves its firewall rules and its bridge behind.
            rules = self._rules + "".join(text for table, text in NO_RULES.items() if f"*{table}\n" not in self._rules)
            subprocess.run(["iptables-restore"], input=rules, text=True, check=True)  # noqa: S607 - wherever it is
            if BRIDGE.exists():
                subprocess.run(["ip", "link", "delete", BRIDGE.name], check=True)  # noqa: S607 - wherever it is
            FORWARDING.write_text(self._forwarding)
            shutil.rmtree(self._folder)
        self._log.unlink()
