"""docker-compose.yml as Compose parses it; tests/containers starts it.

`config` resolves variables and profiles; what Compose takes without a word and would be wrong all the same is asserted.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import INSTRUCTIONS, STAGES, contents, environment, working_directory

from deeplabv3.embedded import limits

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
GPU, CPU = {"model-builder", "triton"}, {"model-builder-cpu", "triton-cpu"}
SERVERS = {"gpu": ("model-builder", "triton"), "cpu": ("model-builder-cpu", "triton-cpu")}
MONITORED = ROOT / "deploy" / "monitoring"
SHIPPED = "deploy/helm/deeplab-triton/monitoring"
MONITORING, LOAD = {"prometheus", "grafana"}, {"locust-master", "locust-worker"}
TRACING = {"jaeger"}
JAEGER = "http://jaeger:4318/v1/traces"
OTHERS = MONITORING | TRACING  # images that are not ours
ALL = ("gpu", "cpu", "monitoring", "tracing", "load")


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Compose directly, because the console script of its package always exits with 0."""
    program = str(files("compose") / "docker-compose")
    return subprocess.run(
        [program, "--file", str(FILE), *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def services(*profiles: str, **variables: str) -> dict[str, Any]:
    options = [word for profile in profiles for word in ("--profile", profile)]
    shown = compose(*options, "config", "--format", "json", **variables)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["services"]


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ((), GPU),
        (("cpu",), CPU),
        (("monitoring",), MONITORING),
        (("load",), LOAD),
        (("tracing",), TRACING),
        (("gpu", "monitoring", "load"), GPU | MONITORING | LOAD),
        (("cpu", "monitoring"), CPU | MONITORING),
    ],
)
def test_profiles_start_their_services(profiles: tuple[str, ...], expected: set[str]) -> None:
    assert set(services(*profiles)) == expected


def test_compose_accepts_the_file_without_warnings() -> None:
    for profile in ALL:
        checked = compose("--profile", profile, "config", "--quiet")
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize("profile", SERVERS)
def test_the_server_waits_for_the_builder_and_cannot_change_what_it_built(profile: str) -> None:
    builder, server = (services(*ALL)[name] for name in SERVERS[profile])
    assert server["depends_on"] == {
        SERVERS[profile][0]: {"condition": "service_completed_successfully", "required": True}
    }

    def models(service: dict[str, Any]) -> dict[str, Any]:
        (found,) = [volume for volume in service["volumes"] if volume["target"] == "/models"]
        return found

    assert models(builder)["source"] == models(server)["source"]
    assert "read_only" not in models(builder)
    assert models(server)["read_only"] is True
    assert models(services(*ALL)["triton"])["source"] != models(services(*ALL)["triton-cpu"])["source"]


def test_the_gpu_is_reserved_where_there_is_one() -> None:
    (device,) = services()["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"capabilities": ["gpu"], "driver": "nvidia", "device_ids": ["0"]}
    assert "--device cuda" in " ".join(services()["model-builder"]["command"])
    for name in CPU:
        assert "devices" not in json.dumps(services("cpu")[name])
    assert "--device cpu" in " ".join(services("cpu")["model-builder-cpu"]["command"])


def test_the_builder_takes_weights_and_options_of_the_environment() -> None:
    plain = services()["model-builder"]["command"]
    assert plain == ["--device", "cuda", "--max-queue-size", "128", "--weights", "COCO_WITH_VOC_LABELS_V1"]
    changed = services(DEEPLAB_WEIGHTS="none", DEEPLAB_MAX_QUEUE_SIZE="64", DEEPLAB_BUILD_OPTIONS="--variant resnet50")
    assert changed["model-builder"]["command"] == [
        *("--device", "cuda", "--max-queue-size", "64", "--weights", "none", "--variant", "resnet50")
    ]
    # A running server would keep the old models, so its definition changes with theirs.
    assert changed["triton"]["labels"] != services()["triton"]["labels"]


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_a_stop_takes_longer_than_the_servers_own(name: str) -> None:
    service = services(*ALL)[name]
    (timeout,) = [re.fullmatch(r"--exit-timeout-secs=(\d+)", option) for option in service["command"][:1]]
    assert timeout is not None
    (grace,) = re.findall(r"^(\d+)s$", service["stop_grace_period"])
    assert int(grace) >= int(timeout[1]) + 15


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_health_is_readiness_and_every_process(name: str) -> None:
    """test_alive.py runs the command."""
    service = services(*ALL)[name]
    check = service["healthcheck"]
    command = check["test"][-1]
    assert "/v2/health/ready" in command
    assert re.findall(r"/opt/deeplab/\S+", command) == ["/opt/deeplab/deploy/alive.sh"]
    assert "/opt/deeplab/deploy/alive.sh" in contents("triton")
    assert check["start_period"] == "10m0s"
    # Process 1 is the server, because the entry point executes it; Compose restarts containers that end.
    assert "alive.sh --end 1 &&" in command
    assert "init" not in service
    assert service["entrypoint"] is None


def test_what_runs_for_good_comes_back_and_the_rest_does_not() -> None:
    for name, service in services(*ALL).items():
        once = name.startswith(("model-builder", "locust"))
        assert service["restart"] == ("no" if once else "unless-stopped"), name


def test_no_proxy_of_dockers_configuration_comes_between_the_services() -> None:
    asked = 0
    for name, service in services(*ALL).items():
        for word in ("curl", "wget"):
            for command in re.findall(
                rf"\b{word}\b.*?(?=&&|$)", " ".join(service.get("healthcheck", {}).get("test", []))
            ):
                assert ("--noproxy '*'" if word == "curl" else "-Y off") in command, name
                asked += 1
    assert asked == 5
    assert services("monitoring")["grafana"]["environment"]["NO_PROXY"] == "*"
    for profile, (_, server) in SERVERS.items():
        assert services(profile)[server]["environment"]["no_proxy"] == "localhost,jaeger"
        mine = services(profile, NO_PROXY="collector.example.org")[server]["environment"]["no_proxy"]
        assert mine == "collector.example.org,jaeger"


def test_the_builder_gets_the_proxies_of_the_shell_in_either_case() -> None:
    given = {variable: f"the {variable}" for variable in ("HTTP_PROXY", "https_proxy", "NO_PROXY", "no_proxy")}
    for profile in SERVERS:
        builder = services(profile, **given)[SERVERS[profile][0]]
        assert given.items() <= builder["environment"].items()


def test_every_variable_is_documented() -> None:
    text = FILE.read_text()
    taken = {
        name for form in (r"\$\{(\w+)", r"(\w+): null", r"\{environment: (\w+)") for name in re.findall(form, text)
    }
    documented = (ROOT / "docs" / "deployment.md").read_text()
    assert {"TRITON_IMAGE", "DEEPLAB_GPU", "LOCUST_PORT", "DEEPLAB_PIP_CONF"} <= taken
    assert not {name for name in taken if not re.search(rf"^\|[^|]*`{name}`", documented, re.MULTILINE)}


def stage_of(name: str) -> str:
    """Return the stage of the Dockerfile that one of our services runs."""
    return "client" if name in LOAD else "triton"


def bytes_of(size: str) -> int:
    number, unit = size[:-1], size[-1]
    return int(number) * {"m": 2**20, "g": 2**30}[unit]


@pytest.mark.parametrize(("name", "gibibytes"), [("triton", 4), ("triton-cpu", 1)])
def test_a_server_has_the_shared_memory_that_its_steps_take(name: str, gibibytes: int) -> None:
    """docs/memory.md has the sums; Docker's default is 64 MiB."""
    service = services(*ALL)[name]
    assert int(service["shm_size"]) == gibibytes * 2**30
    assert int(service["mem_limit"]) > 2 * int(service["shm_size"])
    changed = services(*ALL, DEEPLAB_SHM="8g")[name]
    assert int(changed["shm_size"]) == 8 * 2**30


def writable(service: dict[str, Any]) -> list[str]:
    """Return the writable paths of a service: its tmpfs, and volumes that are not read-only."""
    return [mount.split(":")[0] for mount in service["tmpfs"]] + [
        volume["target"] for volume in service.get("volumes", []) if not volume.get("read_only")
    ]


def lies_on(path: str, mounts: list[str]) -> bool:
    return any(path == mount or path.startswith(f"{mount}/") for mount in mounts)


@pytest.mark.parametrize("name", sorted(GPU | CPU | LOAD))
def test_what_the_image_writes_to_can_be_written_to(name: str) -> None:
    service = services(*ALL)[name]
    variables = environment(stage_of(name))
    for variable in ("HOME", "TORCHINDUCTOR_CACHE_DIR"):
        assert lies_on(variables.get(variable, "/tmp"), writable(service))  # noqa: S108 - the container's
    (temporary,) = [mount for mount in service["tmpfs"] if mount.startswith("/tmp:")]  # noqa: S108 - the container's
    options = dict(option.split("=") for option in temporary.split(":")[1].split(","))
    assert bytes_of(options["size"]) == 2**30
    assert options["mode"] == "1777"


@pytest.mark.parametrize("name", ["model-builder", "model-builder-cpu"])
def test_new_volumes_belong_to_the_builder_and_downloads_go_to_one(name: str) -> None:
    service = services(*ALL)[name]
    volumes = {volume["target"]: volume["source"] for volume in service["volumes"] if volume["type"] == "volume"}
    assert set(volumes) == {"/models", "/weights"}
    assert volumes["/weights"] == "weights"
    assert lies_on(environment("triton")["TORCH_HOME"], [path for path in volumes if volumes[path] == "weights"])
    assert service["entrypoint"][service["entrypoint"].index("--model-repository") + 1] == "/models"
    # A new volume gets the owner of the folder that it is mounted on, and torch creates these two folders in it.
    (made,) = [line for line in STAGES["triton"] if line.startswith("RUN install --directory ")]
    user, owner = service["user"].split(":"), re.findall(r"--(?:owner|group)=(\d+)", made)
    assert owner == user
    assert {*volumes, "/weights/hub", "/weights/hub/checkpoints"} == {
        word for word in made.split() if word.startswith("/")
    }


@pytest.mark.parametrize("name", sorted(GPU | CPU | LOAD))
def test_the_scripts_that_are_started_are_in_the_image(name: str) -> None:
    service = services(*ALL)[name]
    stage = stage_of(name)
    folder = service.get("working_dir", working_directory(stage))
    words = [*(service["entrypoint"] or []), *(service["command"] or [])]
    scripts = [word for word in words if word.endswith(".py")]
    assert len(scripts) == (0 if name.startswith("triton") else 1)
    assert all(f"{folder}/{script}" in contents(stage) for script in scripts)


def test_ports_are_those_that_the_image_exposes_and_prometheus_and_locust_ask() -> None:
    outside = {"HTTP_PORT": "10", "GRPC_PORT": "11", "METRICS_PORT": "12"}
    (exposed,) = [line.split()[1:] for line in STAGES["triton"] if line.startswith("EXPOSE ")]
    (scrape,) = yaml.safe_load((MONITORED / "prometheus.yml").read_text())["scrape_configs"]
    for name in ("triton", "triton-cpu"):
        ports = {port["published"]: str(port["target"]) for port in services(*ALL, **outside)[name]["ports"]}
        assert sorted(ports.values()) == sorted(exposed)
        assert [str(each["port"]) for each in scrape["dns_sd_configs"]] == [ports["12"]]
        assert f"//127.0.0.1:{ports['10']}/" in services(*ALL)[name]["healthcheck"]["test"][-1]
        for user in LOAD:
            assert f"grpc://triton:{ports['11']}" in services("load")[user]["command"]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return the mounts of a service: files of this folder and volumes, by their path in the container."""
    return {volume["target"]: volume["source"].removeprefix(f"{ROOT}/") for volume in service["volumes"]}


def test_prometheus_reads_what_is_mounted_and_keeps_its_series() -> None:
    prometheus = services("monitoring")["prometheus"]
    options = dict(word.removeprefix("--").split("=", 1) for word in prometheus["command"])
    found = mounts(prometheus)
    assert found[options["config.file"]] == "deploy/monitoring/prometheus.yml"
    folder = options["config.file"].rpartition("/")[0]
    for name in yaml.safe_load((MONITORED / "prometheus.yml").read_text())["rule_files"]:
        assert found[f"{folder}/{name}"] == f"{SHIPPED}/{name}"
    assert found[options["storage.tsdb.path"]] == "prometheus"


def test_grafana_reads_what_is_mounted_and_keeps_its_settings() -> None:
    found = mounts(services("monitoring")["grafana"])
    provisioning = "/etc/grafana/provisioning"
    assert found[f"{provisioning}/datasources/deeplab.yml"] == "deploy/monitoring/grafana/datasources.yml"
    assert found[f"{provisioning}/dashboards/deeplab.yml"] == "deploy/monitoring/grafana/dashboards.yml"
    (provider,) = yaml.safe_load((MONITORED / "grafana" / "dashboards.yml").read_text())["providers"]
    boards = [path for path, source in found.items() if source == f"{SHIPPED}/dashboard.json"]
    assert [path.rpartition("/")[0] for path in boards] == [provider["options"]["path"]]
    # The folder of Grafana's database.
    assert [path for path, source in found.items() if source == "grafana"] == ["/var/lib/grafana"]


def test_grafana_asks_the_prometheus_of_this_file() -> None:
    (source,) = yaml.safe_load((MONITORED / "grafana" / "datasources.yml").read_text())["datasources"]
    (port,) = services("monitoring")["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{port['target']}"
    # The dashboard uses any source of the type, but saved links contain the id of this one.
    dashboard = json.loads((ROOT / SHIPPED / "dashboard.json").read_text())
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == source["type"]
    assert (source["uid"], source["isDefault"]) == ("prometheus", True)


def test_both_servers_answer_to_one_name() -> None:
    assert services("cpu")["triton-cpu"]["networks"]["default"]["aliases"] == ["triton"]
    scraped = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"] == ["triton"]


@pytest.mark.parametrize("name", sorted(GPU | CPU | OTHERS | LOAD))
def test_every_service_is_confined(name: str) -> None:
    service = services(*ALL)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in {"0", "root"}
    assert "privileged" not in service
    assert int(service["mem_limit"]) > 0
    assert service["logging"] == {"driver": "local", "options": {"max-file": "5", "max-size": "20m"}}
    if name in GPU | CPU | LOAD:
        assert service["user"] == "1000:1000"


def test_ports_are_published_on_localhost_by_default() -> None:
    for variables, host in (({}, "127.0.0.1"), ({"DEEPLAB_BIND": "0.0.0.0"}, "0.0.0.0")):  # noqa: S104 - as a user may
        published = {
            (name, port["host_ip"])
            for name, service in services(*ALL, **variables).items()
            for port in service.get("ports", [])
        }
        assert published == {
            (name, host) for name in ("triton", "triton-cpu", "prometheus", "grafana", "jaeger", "locust-master")
        }


def test_what_is_mounted_from_here_is_here() -> None:
    mounted = [
        Path(volume["source"])
        for service in services(*ALL).values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert len(mounted) >= 6
    for path in mounted:
        assert path.exists(), path


def test_images_are_pinned() -> None:
    for name, service in services(*ALL).items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+$", tag), service["image"]
        if "build" in service:
            assert service["build"]["target"] == stage_of(name)
            assert (ROOT / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("server", ["gpu", "cpu"])
def test_no_tag_is_built_twice_and_every_image_of_ours_is_built(server: str) -> None:
    """Two services that build the same tag export it simultaneously, and the last image replaces the other."""
    profiles = (server, "monitoring", "tracing", "load")
    printed = compose(*(word for profile in profiles for word in ("--profile", profile)), "build", "--print")
    targets = json.loads(printed.stdout)["target"]
    tags = [tag for target in targets.values() for tag in target["tags"]]
    assert sorted(tags) == ["deeplab-client:0.1.0", "deeplab-triton:0.1.0"]
    for name, service in services(*profiles).items():
        if name not in OTHERS and name not in targets:
            assert service["image"] in tags
            assert service["pull_policy"] == "never"
            assert set(service["depends_on"]) & set(targets)


def test_a_build_accepts_base_images_and_a_configuration_of_pip() -> None:
    """Bake would reject a file, because it reads nothing outside this folder."""
    given = {"TRITON_IMAGE": "registry/triton@sha256:1", "PYTHON_IMAGE": "registry/python@sha256:2"}
    built = services("gpu", "load", **given)
    assert built["model-builder"]["build"]["args"] == {"TRITON_IMAGE": given["TRITON_IMAGE"]}
    assert built["locust-master"]["build"]["args"] == {"PYTHON_IMAGE": given["PYTHON_IMAGE"]}
    printed = compose("--profile", "*", "build", "--print")
    for target in json.loads(printed.stdout)["target"].values():
        assert target["secret"] == ["id=pip.conf,type=env,env=DEEPLAB_PIP_CONF"]
    assert {line.count("--mount=type=secret,id=pip.conf,") for line in INSTRUCTIONS if "pip install" in line} == {1}


def test_a_server_may_have_the_stacks_that_its_entry_point_asks_for() -> None:
    assert services()["triton"]["ulimits"] == {"stack": {"soft": 8 << 20, "hard": limits.STACK_BYTES}}


@pytest.mark.parametrize("profile", SERVERS)
def test_a_server_traces_where_a_url_is_given(profile: str) -> None:
    """test_entrypoint.py checks the options that the entry point derives from it."""
    (_, name) = SERVERS[profile]
    plain = services(profile)[name]["environment"]
    assert (plain["DEEPLAB_TRACE_URL"], plain["DEEPLAB_TRACE_RATE"]) == (None, None)
    given = {"DEEPLAB_TRACE_URL": JAEGER, "DEEPLAB_TRACE_RATE": "100"}
    assert given.items() <= services(profile, **given)[name]["environment"].items()


def test_the_documented_url_is_that_of_jaeger() -> None:
    """Jaeger receives OTLP over HTTP at 4318 and shows its page at 16686."""
    assert JAEGER in (ROOT / "docs" / "deployment.md").read_text()
    (name,) = services("tracing")
    assert JAEGER.startswith(f"http://{name}:4318/")
    ports = services("tracing", JAEGER_PORT="10", OTLP_PORT="11")[name]["ports"]
    assert {port["published"]: port["target"] for port in ports} == {"10": 16686, "11": 4318}


def test_threads_follow_the_cores_that_the_server_gets() -> None:
    """The entry point reads the CPU quota that `cpus` sets."""
    assert services("cpu", DEEPLAB_CPUS="6")["triton-cpu"]["cpus"] == 6
    assert "cpus" not in services("cpu")["triton-cpu"] or not services("cpu")["triton-cpu"]["cpus"]


def test_nobody_becomes_administrator_of_grafana_unasked() -> None:
    grafana = services("monitoring")["grafana"]
    variable, setting = "GRAFANA_PASSWORD", "GF_SECURITY_ADMIN_PASSWORD"
    assert not grafana["environment"][setting]
    assert "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true" in grafana["entrypoint"][2]
    assert services("monitoring", **{variable: "given"})["grafana"]["environment"][setting] == "given"
