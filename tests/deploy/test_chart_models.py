"""The source of the models: the Job that builds them, the pods that wait for it, and the other sources."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from chart import NAME, VARIANTS, job, matches, objects, one, refusal, server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chart import Object

pytestmark = pytest.mark.deploy


def arguments(builder: Object) -> list[str]:
    """Return the arguments that the Job passes to build_models.py."""
    return builder["spec"]["template"]["spec"]["containers"][0]["args"]


def checkpoint(claim: str, *, sub_path: str = "") -> Object:
    """Return values that mount a claim with a checkpoint."""
    mount = {"name": "weights", "mountPath": "/weights", "subPath": sub_path}
    volume = {"name": "weights", "persistentVolumeClaim": {"claimName": claim}}
    return {"models": {"builder": {"extraVolumes": [volume], "extraVolumeMounts": [mount]}}}


def test_another_build_is_another_job_and_another_folder() -> None:
    """A Job cannot be changed, and old pods still read the folder of the old build."""

    def build(values: Object) -> tuple[str, str]:
        (mount,) = [mount for mount in server(values)["volumeMounts"] if mount["name"] == "models"]
        assert arguments(job(values))[-1] == f"/models/{mount['subPath']}"
        assert mount["mountPath"] == "/models"
        assert mount["readOnly"] is True
        return job(values)["metadata"]["name"], mount["subPath"]

    first = build({})
    assert build({"replicaCount": 2}) == first
    others = [
        build({"models": {"builder": {"extraArgs": ["--weights", "none"]}}}),
        build({"image": {"tag": "0.2.0"}}),
        build({"gpu": {"enabled": False}}),
        build({"models": {"builder": {"revision": "2"}}}),
        # The same options with another checkpoint.
        build(checkpoint("one")),
        build(checkpoint("two")),
        build(checkpoint("two", sub_path="newer")),
    ]
    assert len({name for name, _ in (first, *others)}) == 8
    assert len({folder for _, folder in (first, *others)}) == 8


def test_the_builder_builds_for_where_the_server_runs() -> None:
    assert arguments(job({}))[:5] == ["--device", "cuda", "--no-progress", "--max-queue-size", "128"]
    assert arguments(job(VARIANTS["cpu"]))[:-1] == ["--device", "cpu", "--no-progress", "--model-repository"]
    assert arguments(job({"models": {"builder": {"args": ["--weights", "none"]}}}))[:2] == ["--weights", "none"]
    on_cpu = {"models": {"builder": {"direct": False, "postprocessDevice": "cpu", "precision": "bf16"}}}
    assert arguments(job(on_cpu))[5:-2] == ["--no-direct", "--postprocess-device", "cpu", "--precision", "bf16"]


def test_int8_is_calibrated_with_the_pictures_of_a_claim() -> None:
    builder = job(VARIANTS["int8"])
    pod = builder["spec"]["template"]["spec"]
    assert arguments(builder)[3:-2] == ["--no-direct", "--precision", "int8", "--calibration", "/calibration"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "calibration"]
    assert mount == {"name": "calibration", "mountPath": "/calibration", "readOnly": True, "subPath": "street"}
    (volume,) = [each for each in pod["volumes"] if each["name"] == "calibration"]
    assert volume["persistentVolumeClaim"] == {"claimName": "pictures", "readOnly": True}
    # Other pictures are another build.
    others = json.loads(json.dumps(VARIANTS["int8"]).replace("street", "aerial"))
    assert arguments(job(others))[-1] != arguments(builder)[-1]


def test_the_server_waits_for_the_build_that_it_serves() -> None:
    pod = one("Deployment")["spec"]["template"]["spec"]
    (waiting,) = pod["initContainers"]
    builder = job({})["spec"]["template"]["spec"]["containers"][0]
    folder = next(each["value"] for each in waiting["env"] if each["name"] == "BUILD")
    assert folder == next(each["value"] for each in builder["env"] if each["name"] == "BUILD")


@pytest.mark.parametrize("end", ["built", "stopped"])
def test_waiting_ends_with_the_build_or_with_the_pod(tmp_path: Path, end: str) -> None:
    """As the first process of the container, a shell would ignore SIGTERM for the whole grace period."""
    (waiting,) = one("Deployment")["spec"]["template"]["spec"]["initContainers"]
    shell, option, script = waiting["command"]
    command = [shell, option, script.replace("/claim/", f"{tmp_path}/").replace("sleep 5", "sleep 0.05")]
    with subprocess.Popen(command, env={"BUILD": "build-1"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "build-1" in process.stdout.readline()
        if end == "built":
            (tmp_path / "build-1.done").touch()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == (0 if end == "built" else 1)


@pytest.fixture
def start_build(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts the Job's command, with a script as build_models.py and tmp_path as the claim."""
    builder = job({})["spec"]["template"]["spec"]["containers"][0]
    (tmp_path / "models").mkdir()

    def start(script: str = "") -> subprocess.Popen[str]:
        python = tmp_path / "python3"
        if script:  # and else what a build that runs has open
            python.write_text(f"#!/bin/sh\n{script}\n")
            python.chmod(0o755)
        command = [part.replace("/models/", f"{tmp_path}/models/") for part in builder["command"]]
        return subprocess.Popen(
            [*command, *builder["args"]],
            env={"BUILD": "build-1", "PATH": f"{tmp_path}:/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def fails_for_good(code: int) -> bool:
    """Return the action of the Job for a pod whose builder ended with an exit code."""
    rules = job({})["spec"]["podFailurePolicy"]["rules"]
    (rule,) = [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob"]
    assert (rule["containerName"], rule["operator"]) == ("builder", "In")
    return code in rule["values"]


# build_models.py: failed, a wrong option, no download, another build or storage. Then: no python3, killed, ended.
HOPELESS, WORTH_ANOTHER_TRY = (1, 2), (3, 4, 127, 137, 143)


@pytest.mark.parametrize("code", [0, *HOPELESS, *WORTH_ANOTHER_TRY])
def test_only_a_build_that_succeeded_leaves_its_mark_and_only_hopeless_ones_end_the_job(
    tmp_path: Path, start_build: Callable[..., subprocess.Popen[str]], code: int
) -> None:
    with start_build(f'echo "$@"; exit {code}') as build:
        assert build.wait(10) == code
        assert build.stdout is not None
        assert build.stdout.read().splitlines()[-1].split() == ["build_models.py", *arguments(job({}))]
    assert (tmp_path / "models" / "build-1.done").exists() == (code == 0)
    assert fails_for_good(code) == (code in HOPELESS)


def test_a_build_that_is_stopped_clears_up_and_leaves_no_mark(
    tmp_path: Path, start_build: Callable[..., subprocess.Popen[str]]
) -> None:
    """As the first process of the container, a shell would ignore SIGTERM, and the build would be killed midway."""
    script = f"trap 'kill $!; touch {tmp_path}/cleared; exit 0' TERM; sleep 60 & echo building; wait $!"
    with start_build(script) as build:
        assert build.stdout is not None
        assert "building\n" in iter(build.stdout.readline, "")
        build.send_signal(signal.SIGTERM)
        code = build.wait(10)
    assert (tmp_path / "cleared").exists()
    assert code
    assert not fails_for_good(code)
    assert not (tmp_path / "models" / "build-1.done").exists()


def test_two_jobs_do_not_build_at_once(tmp_path: Path, start_build: Callable[..., subprocess.Popen[str]]) -> None:
    """Helm creates the new Job before it deletes the old one, and two releases may share a claim."""
    inside, go_on = tmp_path / "inside", tmp_path / "go on"
    script = f"mkdir {inside} || exit 9; echo in; until [ -e '{go_on}' ]; do sleep 0.02; done; rmdir {inside}"
    with start_build(script) as first:
        assert first.stdout is not None
        assert "in\n" in iter(first.stdout.readline, "")
        with start_build() as second:
            assert second.stdout is not None
            assert "after any other" in second.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(0.5)  # it would end with 9 if it came in
            go_on.touch()
            assert [first.wait(10), second.wait(10)] == [0, 0]


def test_a_stop_after_the_build_does_not_end_the_job(
    tmp_path: Path, start_build: Callable[..., subprocess.Popen[str]]
) -> None:
    touch = tmp_path / "touch"
    touch.write_text('#!/bin/sh\nkill -TERM $PPID\nexec /usr/bin/touch "$@"\n')
    touch.chmod(0o755)
    with start_build("exit 0") as build:
        assert not fails_for_good(build.wait(10))


def test_the_builder_accepts_a_proxy_and_a_checkpoint_and_keeps_its_folder() -> None:
    template = job(VARIANTS["everything"])["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
    assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in container["volumeMounts"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    proxy: Object = {"models": {"builder": {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}}}
    assert job(proxy)["metadata"]["name"] != job({})["metadata"]["name"]
    (folder,) = {arguments(job(values))[-1] for values in ({}, proxy)}
    assert folder.startswith("/models/build-")


@pytest.mark.parametrize("variant", ["image", "image volume", "object store", "claim that is full"])
def test_nothing_is_built_where_the_models_come_from_elsewhere(variant: str) -> None:
    found = objects(VARIANTS[variant])
    assert not [each for each in found if each["kind"] in {"Job", "PersistentVolumeClaim"}]


def test_a_claim_of_one_node_serves_one_pod() -> None:
    one_node: Object = {"models": {"pvc": {"accessModes": ["ReadWriteOnce"]}}}
    assert "updateStrategy.type to Recreate" in refusal(one_node)
    recreated = one_node | {"updateStrategy": {"type": "Recreate"}}
    assert one("Deployment", recreated)["spec"]["strategy"] == {"type": "Recreate"}
    affinity = job(recreated)["spec"]["template"]["spec"]["affinity"]["podAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert matches(term["labelSelector"]["matchLabels"], one("Deployment")["spec"]["template"]["metadata"]["labels"])
    assert "only one node can mount the claim, and there may be 2 pods" in refusal(recreated | {"replicaCount": 2})


def test_a_claim_is_kept_and_gets_its_class() -> None:
    claim = one("PersistentVolumeClaim", name=f"{NAME}-models")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "storageClassName" not in claim["spec"]
    none = one("PersistentVolumeClaim", VARIANTS["claim of one node"], name=f"{NAME}-models")
    assert none["spec"]["storageClassName"] == ""


def test_an_object_store_is_copied_before_the_start() -> None:
    (copy,) = one("Deployment", VARIANTS["object store"])["spec"]["template"]["spec"]["initContainers"]
    assert copy["args"][:3] == ["copy", "models:bucket/models", "/models"]
    assert {"name": "RCLONE_CONFIG_MODELS_PROVIDER", "value": "AWS"} in copy["env"]
    assert copy["envFrom"] == [{"secretRef": {"name": "store"}}]
