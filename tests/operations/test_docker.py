"""The images and the stack of docker/, checked without an engine: by schema and linter, and by the
very programs that their commands start."""

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flows import mlflow_app
from tests.support.servers import BIN, ROOT, environment

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TARGETS = ("orchestrator", "cpu", "gpu")
SECRETS = re.compile(
    "PASSWORD|SECRET|TOKEN|KEY|AUTH_STRING|LOGIN|CONNECTION_URL|DOCKET_URL|STORE_URI"
)


def pins(path: Path) -> dict[str, set[str]]:
    """A lock's versions of each package; several where they differ by platform."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        found.setdefault(name, set()).add(version)
    return found


def stage(name: str) -> list[str]:
    """The instructions of a stage, each on one line, those of the stages it builds on first."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    blocks = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]
    for block in blocks:
        head, *lines = block.strip().splitlines()
        _, parent, _, given = head.split()
        if given == name:
            return (stage(parent) if not parent.startswith("$") else []) + list(filter(None, lines))
    raise AssertionError(f"no stage {name}")


def programs(command: list[str]) -> list[list[str]]:
    """The commands of a service: its own, or each line of the shell's."""
    if command[:2] != ["sh", "-ec"]:
        return [command]
    return [shlex.split(line) for line in command[2].replace("$$", "$").strip().splitlines()]


def parsed(words: list[str]) -> None:
    """Lets the real program read its words; raises or exits where it would refuse them."""
    match words:
        case ["prefect", *rest]:
            from prefect.cli._app import _app as app

            given = app.meta.parse_args(rest, exit_on_error=False, print_error=False)[1]
            app.parse_args(list(given.args), exit_on_error=False, print_error=False)
        case ["mlflow", "server", *rest]:
            from mlflow.cli import cli

            cli.commands["server"].make_context("server", rest)
        case ["ray", name, *rest]:
            from ray.scripts.scripts import cli

            cli.commands[name].make_context(name, rest)
        case ["exec", *rest]:
            parsed(rest)
        case ["retort", *rest]:
            from flows.cli import parser

            parser().parse_args(rest)
        case ["python", "-m", module, *rest]:
            words = ["1" if word == "$RETORT_GPUS" else word for word in rest]
            with pytest.raises(SystemExit) as left:
                importlib.import_module(module).main([*words, "--help"])
            assert left.value.code == 0
        case ["python", "-c", code]:
            compile(code, "command", "exec")
        case _:
            raise AssertionError(f"no program reads {words}")


def of_redis():
    """The settings of prefect-redis, which are not among Prefect's own."""
    from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
    from prefect_redis.client import RedisMessagingSettings

    for kind in (RedisMessagingSettings, RedisWorkerCleanupQueueSettings):
        yield from (
            f"{kind.model_config['env_prefix']}{name}".upper() for name in kind.model_fields
        )


OURS = {name: s for name, s in SERVICES.items() if s["image"].startswith("retort-")}
COMMANDS = [words for service in OURS.values() for words in programs(service["command"])]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_stack_is_read_by_its_program(words):
    parsed(words)


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_image_starts_by_itself_is_read_by_its_program(target):
    started = next(line for line in reversed(stage(target)) if line.startswith("CMD "))
    parsed(json.loads(started.removeprefix("CMD ")))


def test_a_flag_that_a_program_does_not_know_is_noticed():
    with pytest.raises(Exception, match="--no-such-flag"):
        parsed(["prefect", "server", "start", "--no-such-flag"])
    with pytest.raises(Exception, match="--no-such-flag"):
        parsed(["mlflow", "server", "--no-such-flag"])
    with pytest.raises(Exception, match="--no-such-flag"):
        parsed(["exec", "ray", "start", "--no-such-flag"])


def test_the_deployment_and_the_pool_that_the_stack_names_are_those_that_are_made():
    from flows.server_setup import POOLS

    made = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    pools = {deployment["name"]: deployment["work_pool"]["name"] for deployment in made}
    named = {words[words.index("--pool") + 1] for words in COMMANDS if "--pool" in words}
    deploying = [pairwise(words) for words in COMMANDS if "deploy" in words]
    patterns = {value for words in deploying for option, value in words if option == "--name"}
    deployed = {pattern.removeprefix("*/") for pattern in patterns}  # of every flow
    asked = {words[words.index("--deployment") + 1] for words in COMMANDS if "submit" in words}
    assert named <= POOLS.keys()
    assert asked <= deployed
    assert {pools[name] for name in deployed} == named


def test_every_setting_of_prefect_in_the_stack_is_one_that_prefect_knows():
    from prefect.settings.legacy import Settings, _get_valid_setting_names

    known = _get_valid_setting_names(Settings) | set(of_redis())
    given = {name for service in SERVICES.values() for name in service.get("environment", {})}
    given |= {name for line in stage("orchestrator") for name in re.findall(r"PREFECT_\w+", line)}
    ours = {name for name in given if name.startswith("PREFECT_")}
    assert len(ours) > 10
    assert ours - known == set()


def test_every_part_of_prefect_that_speaks_to_redis_knows_where_it_is_and_its_password():
    parts = {name.removesuffix("_HOST") for name in of_redis() if name.endswith("_HOST")}
    assert len(parts) == 2
    for name in ("prefect", "prefect-services"):
        given = SERVICES[name]["environment"]
        assert {given[f"{part}_HOST"] for part in parts} == {"redis"}
        assert {given[f"{part}_PASSWORD"] for part in parts} == {"${REDIS_PASSWORD:?}"}


def test_the_stack_holds_to_the_compose_specification():
    bearer = importlib.util.find_spec("check_jsonschema")
    assert bearer and bearer.origin
    vendor = Path(bearer.origin).parent / "builtin_schemas/vendor"
    jsonschema.validate(COMPOSE, json.loads((vendor / "compose-spec.json").read_text()))


def test_what_a_service_waits_for_exists_and_can_be_waited_for():
    for name, service in SERVICES.items():
        for other, rule in service.get("depends_on", {}).items():
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other] or other in OURS, (name, other)
            else:
                assert SERVICES[other]["restart"].startswith("on-failure"), (name, other)
        assert "restart" in service
    assert all(any(line.startswith("HEALTHCHECK") for line in stage(target)) for target in TARGETS)


def test_nothing_is_published_beyond_loopback_and_databases_reach_nobody():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert COMPOSE["networks"]["data"]["internal"] is True
    assert all(SERVICES[name]["networks"] == ["data"] for name in ("postgres", "redis"))


def test_a_secret_is_asked_of_the_environment_and_nothing_else_is_in_the_files():
    example = (DOCKER / ".env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, flags=re.MULTILINE))
    text = (DOCKER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) <= offered.keys()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        assert offered[name] == default, name
    passwords = {f"{name}_PASSWORD" for name in ("POSTGRES", "REDIS", "PREFECT", "MLFLOW")}
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert needed == passwords | {"S3_ACCESS_KEY", "S3_SECRET_KEY", "RAY_AUTH_TOKEN"}
    assert not any(offered[name] for name in offered if SECRETS.search(name))
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not SECRETS.search(name) or "${" in value, name


def test_both_servers_ask_for_a_login_and_answer_their_own_pages_only():
    prefect, mlflow = (SERVICES[name]["environment"] for name in ("prefect", "mlflow"))
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == "retort:${PREFECT_PASSWORD:?}"
    assert prefect["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == prefect["PREFECT_UI_URL"]
    assert "--app-name retort" in " ".join(SERVICES["mlflow"]["command"])
    assert mlflow[mlflow_app.LOGIN] == "retort:${MLFLOW_PASSWORD:?}"
    assert "*" not in mlflow[mlflow_app.HOSTS]


def test_the_nodes_of_the_ray_cluster_know_one_another_by_a_token_and_only_the_nodes_give_room():
    ray = {
        name: service for name, service in SERVICES.items() if "ray" in service.get("profiles", ())
    }
    started = {
        name: next(words for words in programs(service["command"]) if words[:2] == ["ray", "start"])
        for name, service in ray.items()
    }
    assert started.keys() == {"ray-head", "ray-node", "worker-ray"}
    for name, service in ray.items():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"] == "${RAY_AUTH_TOKEN:?}"
        assert "ports" not in service and service["networks"] == ["retort"]
        assert ("--num-cpus=0" in started[name]) == (name != "ray-node")
        assert ("--address=ray-head:6379" in started[name]) == (name != "ray-head")
    assert {"--head", "--port=6379"} <= set(started["ray-head"])
    assert ray["ray-node"]["deploy"]["replicas"] == 2
    assert len({service["image"] for service in ray.values()}) == 1
    assert "--set cluster.ray=ray-head:6379" in (DOCKER / "compose.yaml").read_text()


def test_no_index_and_no_foreign_host_is_named():
    for path in sorted(DOCKER.iterdir()):
        text = re.sub(r"\$\{[^}]*\}", "", path.read_text())
        hosts = {host.rpartition("@")[2] for host in re.findall(r"://([^/\s\"']+)", text)}
        names = {host.partition(":")[0] for host in hosts}
        assert names <= {*SERVICES, "127.0.0.1", "retort"}, (path.name, names)
        assert not re.search(r"index[-_]url|find[-_]links|pypi\.|pythonhosted", text, re.I), path


def test_the_small_image_has_the_versions_of_the_lock():
    small, whole = pins(DOCKER / "orchestrator.lock"), pins(ROOT / "requirements.lock")
    assert {name for name in small.keys() & whole.keys() if not small[name] <= whole[name]} == set()
    assert "torch" not in small
    wanted = re.findall(r"^([\w-]+)", (DOCKER / "orchestrator.in").read_text(), flags=re.MULTILINE)
    assert set(wanted) <= small.keys()
    # What comes on top of it: the workers that start containers, and what they bring.
    assert len(small.keys() - whole.keys()) < 15


def test_the_flows_are_read_with_the_packages_of_the_small_image_alone(tmp_path):
    allowed = sorted(pins(DOCKER / "orchestrator.lock"))
    program = """
import sys
from importlib.metadata import packages_distributions
allowed = set(sys.argv[1].split())
normal = lambda name: name.lower().replace("_", "-").replace(".", "-")
owners = {top: {normal(name) for name in names} for top, names in packages_distributions().items()}
class Absent:
    def find_spec(self, name, path=None, target=None):
        owned = owners.get(name.partition(".")[0])
        if owned and not owned & allowed and "retort" not in owned:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import flows.distill, flows.server_setup
from prefect.utilities.callables import parameter_schema
print(sorted(parameter_schema(flows.distill.distill).properties))
try:
    import torch
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, " ".join(allowed)],
        capture_output=True,
        text=True,
        env=environment(PREFECT_HOME=str(tmp_path)),
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['force', 'spec', 'store']", "No module named 'torch'"]


def test_images_are_built_of_the_project_as_it_is():
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, flags=re.MULTILINE).group(1)
    uv = re.search(r"^UV_VERSION := (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert f"ARG UV_VERSION={uv}\n" in DOCKERFILE
    assert DOCKERFILE.count(f"ARG VERSION={version}\n") == len(TARGETS)
    assert {service["build"]["target"] for service in OURS.values()} == set(TARGETS)
    for name, service in OURS.items():
        assert service["image"] == f"retort-{service['build']['target']}:{version}", name


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_without_root_and_from_a_pinned_base(target):
    lines = stage(target)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any("useradd --uid 10001" in line for line in lines)
    assert [line for line in lines if line.startswith("WORKDIR ")] == ["WORKDIR /opt/retort"]
    assert sum(line.startswith("LABEL ") for line in lines) == 1
    assert ("VOLUME /store" in lines) == (target != "orchestrator")
    assert set(re.findall(r"^FROM (\$\{\w+\})", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    pinned = r"(\S+):[\w.-]*\d+\.\d+[\w.-]*(@sha256:\w+)?"
    assert re.search(rf"^ARG PYTHON_IMAGE={pinned}$", DOCKERFILE, flags=re.MULTILINE)
    for service in SERVICES.values():
        image = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", service["image"])
        assert re.fullmatch(pinned, image), image


def test_what_the_images_copy_exists_and_is_let_through():
    let_through = re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.M)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    bound = re.findall(r"type=bind,source=([^,]+)", DOCKERFILE)
    for name in {name for names in copied for name in names.split()} | set(bound):
        assert name in let_through
        assert (ROOT / name).exists()
    # What `import docker` finds is the client of that name, also from the repository's root.
    assert not (DOCKER / "__init__.py").exists()


def test_hadolint_finds_nothing_in_the_dockerfile():
    command = [str(BIN / "hadolint"), str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
