"""The server's container as Compose starts it: its permissions, its answers and its recovery.

Triton is the wheel's 2.51 in a stand-in for NVIDIA's image: tests/support/standin_images.py.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pictures import cat
from triton_process import wait_until

from deeplab_client import RetryPolicy, SegmentationClient, SegmentationError
from deeplabv3.embedded import limits

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt
    from compose_project import ComposeProject

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

PICTURES = [cat(size) for size in ((160, 120), (120, 160), (161, 97))]


def client(project: ComposeProject, protocol: str = "grpc", *, retries: RetryPolicy | int = 0) -> SegmentationClient:
    port = project.ports[f"{protocol.upper()}_PORT"]
    return SegmentationClient(f"{protocol}://127.0.0.1:{port}", timeout=240.0, retries=retries)


def masks(project: ComposeProject) -> list[npt.NDArray[np.uint8]]:
    with client(project) as quiet:
        return [quiet.segment(picture).mask for picture in PICTURES]


class Load:
    """Threads that send pictures until the context ends, and their results.

    Args:
        project: whose server is asked.
        retries: of each request.
    """

    def __init__(self, project: ComposeProject, *, retries: RetryPolicy | int = 0) -> None:
        self._expected = masks(project)
        self._client = client(project, retries=retries)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(6)]
        self.right = 0
        self.wrong = 0
        self.failures: list[SegmentationError] = []
        self._lock = threading.Lock()

    def _send(self, number: int) -> None:
        while not self._over.is_set():
            number = (number + 1) % len(PICTURES)
            try:
                mask = self._client.segment(PICTURES[number]).mask
            except SegmentationError as error:
                with self._lock:
                    self.failures.append(error)
                time.sleep(0.05)
                continue
            with self._lock:
                if np.array_equal(mask, self._expected[number]):
                    self.right += 1
                else:
                    self.wrong += 1

    def wait_for_more(self, count: int = 20) -> None:
        before = self.right
        wait_until(lambda: self.right >= before + count, what=f"{count} more masks; {self.failures[-3:]}", seconds=240)

    def __enter__(self) -> Load:  # noqa: PYI034 - typing.Self needs Python 3.11
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_it_segments(served: ComposeProject, protocol: str) -> None:
    with client(served, protocol) as asked:
        for picture in PICTURES:
            assert asked.segment(picture).mask.shape == picture.size[::-1]


def test_it_is_confined(served: ComposeProject) -> None:
    status = dict(line.split(":\t", 1) for line in served.inside("cat", "/proc/1/status").splitlines())
    assert {status[name].split()[0] for name in ("Uid", "Gid")} == {"1000"}
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    written = "for path in / /opt /models /var/tmp /tmp /dev/shm; do (: >$path/t) 2>/dev/null && echo $path; done; true"
    assert served.inside("bash", "-pc", written).split() == ["/tmp", "/dev/shm"]  # noqa: S108 - the container's


def test_it_has_what_the_entry_points_set(served: ComposeProject) -> None:
    (stack,) = [line for line in served.inside("cat", "/proc/1/limits").splitlines() if "stack" in line]
    assert stack.split()[3:5] == [str(limits.STACK_BYTES)] * 2
    variables = dict(word.split("=", 1) for word in served.inside("cat", "/proc/1/environ").split("\0") if word)
    assert variables["STANDIN_ENTRYPOINT"] == "passed"
    assert "BASH_ENV" not in variables
    assert served.inside("cat", "/proc/1/comm") == "tritonserver\n"


def test_a_probe_does_not_wait_for_what_each_bash_runs_first(served: ComposeProject) -> None:
    before = time.monotonic()
    served.inside("bash", "-c", "true")
    usual = time.monotonic() - before
    assert usual > 2
    before = time.monotonic()
    served.inside("/opt/deeplab/deploy/alive.sh")
    assert time.monotonic() - before < usual


def test_a_form_does_not_end_it(served: ComposeProject) -> None:
    started = served.inspected()["State"]["StartedAt"]
    url = f"http://127.0.0.1:{served.ports['HTTP_PORT']}/v2/health/ready"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, bytes(60_000_000))
    with refused.value:
        assert refused.value.code == 405
    assert served.inspected()["State"]["StartedAt"] == started


def test_the_images_have_labels(served: ComposeProject) -> None:
    for image, title in (("triton", "DeepLabV3 on Triton"), ("client", "DeepLabV3 client and load tests")):
        (inspected,) = json.loads(served.engine.docker("image", "inspect", f"deeplab-{image}:0.1.0"))
        labels = {
            name.removeprefix("org.opencontainers.image."): value
            for name, value in inspected["Config"]["Labels"].items()
        }
        assert labels["title"] == title
        assert labels["version"] == "0.1.0"
        assert labels["base.name"].startswith("standin/")
    assert (
        "triton" not in served.inside("python3", "-m", "pip", "list", "--format", "freeze").replace("==", " ").split()
    )


def test_a_second_build_and_up_keep_it(served: ComposeProject) -> None:
    before = served.inspected()
    served("build")
    served("up", "--detach", "--wait")
    after = served.inspected()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert after["Image"] == before["Image"]


def test_a_stop_under_load_loses_nothing(served: ComposeProject) -> None:
    """The client waits until the server is back."""
    with Load(served, retries=RetryPolicy(retries=1000, longest_delay=1.0)) as load:
        load.wait_for_more()
        served("stop", "triton-cpu")
        code = served.inspected()["State"]["ExitCode"]
        served("start", "triton-cpu")
        load.wait_for_more()
    assert (load.failures, load.wrong) == ([], 0)
    # Not killed; 1 is that of 2.51 where its models are not unloaded in 30 s, as on a machine with other work.
    assert code in {0, 1}


def test_a_pause_under_load_gives_no_wrong_mask(served: ComposeProject) -> None:
    """Docker does not report it. 2.51 may die of it, and is then restarted."""
    with Load(served) as load:
        load.wait_for_more()
        served("pause", "triton-cpu")
        time.sleep(3)
        served("unpause", "triton-cpu")
        load.wait_for_more()
    assert load.wrong == 0


def test_a_killed_server_comes_back(served: ComposeProject) -> None:
    before = served.inspected()["RestartCount"]
    os.kill(served.inspected()["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: served.inspected()["RestartCount"] > before, what="the container has been started again")
    served.wait_healthy()
    assert len(masks(served)) == len(PICTURES)
