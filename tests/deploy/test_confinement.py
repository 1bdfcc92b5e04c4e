"""The server as the chart and Compose run it: user 1000, no capabilities, only /tmp and /dev/shm writable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from triton_process import SERVE, TritonProcess

from benchmarks import toy
from deeplab_client import SegmentationClient

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

CONFINED = Path(__file__).parents[1] / "support" / "confined.py"
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]
WRITABLE = {"/tmp", "/dev/shm"}  # noqa: S108 - compared only
# The home of a user without a passwd entry in a container. It shows whether the server needs a cache there.
HOME = {"HOME": "/"}


@pytest.fixture
def confined(toy_repository: Path) -> list[str]:
    """Return the prefix of a command that confines it.

    Fails where this is not allowed, for a check that was asked for and cannot be made is no success.
    """
    done = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.fail(
            f"{done.stderr.strip()}: this test needs user namespaces. In a container, allow unshare and mount: docker "
            "run --security-opt seccomp=unconfined --security-opt apparmor=unconfined. On Ubuntu: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0. Elsewhere: sysctl user.max_user_namespaces above 0"
        )
    folders = (toy_repository, SERVE.parent, Path(sys.prefix), Path(sys.base_prefix))
    keep = [word for folder in folders for word in ("--keep", str(folder))]
    return [*NAMESPACES, sys.executable, str(CONFINED), *keep, "--"]


def test_the_confined_server_segments_and_leaves_nothing(
    confined: list[str], toy_repository: Path, tmp_path: Path
) -> None:
    with TritonProcess(toy_repository, log=tmp_path / "log", environment=HOME, before=confined) as server:
        for process in (server.triton, *server.stubs):
            root = Path(f"/proc/{process.pid}")
            status = dict(line.split(":\t", 1) for line in (root / "status").read_text().splitlines() if ":\t" in line)
            assert status["NoNewPrivs"] == "1"
            assert {int(status[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            for ids in ("uid_map", "gid_map"):
                (mapped,) = (root / ids).read_text().splitlines()
                assert mapped.split()[0::2] == ["1000", "1"]
            mounts = [line.split() for line in (root / "mountinfo").read_text().splitlines()]
            assert {mount[4] for mount in mounts if "ro" not in mount[5].split(",")} == {*WRITABLE, "/proc"}
        for scheme, url in (("grpc", server.grpc_url), ("http", server.http_url)):
            with SegmentationClient(f"{scheme}://{url}", timeout=30) as client:
                for number in range(20):
                    picture = toy.picture(number)
                    assert picture.is_mask(client.segment(picture.ppm()).mask)
        assert server.stop() == 0
        assert json.loads(server.rest_of_output()) == []
