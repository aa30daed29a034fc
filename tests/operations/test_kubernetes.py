"""The manifests of deployments/kubernetes/ and the job template of its pool, checked without a
cluster: by Prefect's own code, by the schemas of Kubernetes, and against one another."""

import asyncio
import copy
import json
import re
import shlex
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.collections import visit_collection
from prefect.utilities.schema_tools import validate
from prefect.workers.base import BaseJobConfiguration

from flows import mlflow_app
from flows.server_setup import POOLS
from retort.processes.cluster_run import LEAVE_SECONDS
from tests.operations.test_docker import SECRETS, parsed, programs
from tests.support.servers import ROOT

FOLDER = ROOT / "deployments" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
# Applied when a job has outgrown one pod, and not before.
RAY_CLUSTER = yaml.safe_load((FOLDER / "raycluster.yaml").read_text())
HEAD = RAY_CLUSTER["spec"]["headGroupSpec"]
(GROUP,) = RAY_CLUSTER["spec"]["workerGroupSpecs"]
PODS = {
    manifest["metadata"]["name"]: manifest["spec"]["template"]
    for manifest in MANIFESTS
    if manifest["kind"] in ("Deployment", "Job")
}
TEMPLATE = json.loads((FOLDER / "gpu-job-template.json").read_text())
VARIABLES, ON_RAY = (
    deployment["work_pool"]["job_variables"]
    for deployment in yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    if deployment["work_pool"]["name"] == "retort-kubernetes"
    and deployment["entrypoint"] == "flows/distill.py:distill"
)


class KubernetesJob(BaseJobConfiguration):
    """Prefect's configuration of a job, with the field that its Kubernetes worker adds."""

    job_manifest: dict[str, Any]


def job(**values: Any) -> dict[str, Any]:
    """The job that the pool makes of a run with these job variables."""
    assert validate(values, TEMPLATE["variables"], raise_on_error=True) == []
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nothing is asked there
        made = asyncio.run(KubernetesJob.from_template_and_values(TEMPLATE, values))
    return made.job_manifest


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def as_pod(group: dict[str, Any]) -> dict[str, Any]:
    """A pod of a Ray cluster as KubeRay makes it of its template."""
    name = group["template"]["spec"]["containers"][0]["name"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **group["template"]}


def found(manifest: Any, key: str) -> list[Any]:
    """All values of a key, however deep."""
    values = []

    def look(node: Any) -> Any:
        if isinstance(node, dict) and key in node:
            values.append(node[key])
        return node

    visit_collection(manifest, look)
    return values


def test_a_run_gets_its_gpus_shared_memory_and_a_place_on_a_node_with_gpus():
    made = job(**VARIABLES, gpus=4, shared_memory="32Gi", node_selector={"gpu": "h100"})
    run = pod(made)
    assert run["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    shared = next(v for v in run["volumes"] if v["name"] == "shared-memory")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    mounted = {v["name"]: v["mountPath"] for v in run["containers"][0]["volumeMounts"]}
    assert mounted["shared-memory"] == "/dev/shm"
    assert mounted.keys() == {volume["name"] for volume in run["volumes"]}
    assert run["nodeSelector"] == {"gpu": "h100"}
    assert run["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert made["spec"]["activeDeadlineSeconds"] == 7 * 24 * 3600


def test_what_is_not_given_is_left_out_and_what_is_wrong_is_refused():
    run = pod(job())
    assert not {"nodeSelector", "runtimeClassName"} & run.keys()
    assert run["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert next(v for v in run["volumes"] if v["name"] == "cache") == {"name": "cache"}
    claim = {"claimName": "models"}
    cached = pod(job(cache_claim=claim))["volumes"]
    assert {"name": "cache", "persistentVolumeClaim": claim} in cached
    for wrong in ({"gpus": -1}, {"gpus": "two"}, {"active_deadline_seconds": 1}):
        assert validate(wrong, TEMPLATE["variables"]), wrong


def test_the_pool_takes_the_template_and_all_that_its_own_would_take():
    from prefect.server.api import collections_data

    views = f"{collections_data.__path__[0]}/views/aggregate-worker-metadata.json"
    with open(views) as stream:
        kinds = json.load(stream)["prefect-kubernetes"]
    default = kinds[POOLS["retort-kubernetes"]]["default_base_job_configuration"]
    assert WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=TEMPLATE)
    ours, theirs = TEMPLATE["variables"]["properties"], default["variables"]["properties"]
    assert {
        name for name in theirs if ours[name] | {"default": 0} != theirs[name] | {"default": 0}
    } == set()
    kept = default["job_configuration"] | {"job_manifest": None}
    assert TEMPLATE["job_configuration"] | {"job_manifest": None} == kept
    named = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert named == ours.keys()


def test_no_pod_runs_as_root_or_may_become_it():
    templates = [pod({"spec": {"template": template}}) for template in PODS.values()]
    for spec in [*templates, pod(job()), HEAD["template"]["spec"], GROUP["template"]["spec"]]:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    "manifest",
    [*MANIFESTS, *(as_pod(group) for group in (HEAD, GROUP))],
    ids=lambda m: f"{m['kind']} {m['metadata']['name']}",
)
def test_a_manifest_holds_to_the_schema_of_its_kind(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_job_of_a_run_holds_to_the_schema():
    made = copy.deepcopy(job(**VARIABLES))
    # Prefect's worker wants these two in the pod as well, where Kubernetes passes over them.
    assert pod(made).pop("parallelism") == pod(made).pop("completions") == 1
    made["metadata"]["name"] = made["metadata"].pop("generateName") + "x"
    pod(made)["containers"][0] |= {"env": [], "args": ["prefect", "flow-run", "execute"]}
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)


def test_every_file_is_applied_and_every_thing_lies_in_the_namespace():
    files = {path.name for path in FOLDER.glob("*.yaml")} - {
        "kustomization.yaml",
        "raycluster.yaml",
    }
    assert files == set(KUSTOMIZATION["resources"])
    assert {m["metadata"].get("namespace") for m in MANIFESTS[1:]} == {"retort"}
    assert job()["metadata"]["namespace"] == VARIABLES["namespace"] == "retort"


def test_services_accounts_and_settings_that_are_named_exist():
    named = {(m["kind"], m["metadata"]["name"]) for m in MANIFESTS}
    for template in PODS.values():
        assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in named
    assert ("ServiceAccount", VARIABLES["service_account_name"]) in named
    settings = next(m for m in MANIFESTS if m["kind"] == "ConfigMap")
    for reference in found([*MANIFESTS, job()], "configMapRef"):
        assert reference["name"] == settings["metadata"]["name"]
    services = {m["metadata"]["name"]: m["spec"] for m in MANIFESTS if m["kind"] == "Service"}
    for name, service in services.items():
        ports = {port["name"]: port for port in pod_ports(PODS[name])}
        assert PODS[name]["metadata"]["labels"].items() >= service["selector"].items()
        assert (
            ports[service["ports"][0]["targetPort"]]["containerPort"]
            == (service["ports"][0]["port"])
        )
    urls = f"{json.dumps(settings)} {json.dumps(VARIABLES)}"
    for name, port in re.findall(r"http://(\w+)\.retort:(\d+)", urls):
        assert services[name]["ports"][0]["port"] == int(port)


def pod_ports(template: dict[str, Any]) -> list[dict[str, Any]]:
    return template["spec"]["containers"][0]["ports"]


def test_images_have_the_projects_version_and_commands_are_read_by_their_programs():
    released = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert [image["newTag"] for image in KUSTOMIZATION["images"]] == [released]
    assert pod(job())["containers"][0]["image"] == VARIABLES["image"] == f"retort-gpu:{released}"
    for template in PODS.values():
        container = template["spec"]["containers"][0]
        assert container["image"] == f"retort-orchestrator:{released}"
        for words in programs(container.get("command") or container["args"]):
            parsed(words)


def test_the_workers_of_the_ray_cluster_are_like_a_runs_own_pod():
    own, worker = pod(job(**VARIABLES)), GROUP["template"]["spec"]
    for name in ("tolerations", "securityContext", "serviceAccountName"):
        assert worker[name] == own[name], name
    mine, theirs = own["containers"][0], worker["containers"][0]
    for name in ("image", "imagePullPolicy", "securityContext", "volumeMounts"):
        assert theirs[name] == mine[name], name
    # The token is in `env`, because KubeRay hands only that on to what waits for the head.
    assert [each for each in mine["envFrom"] if each not in theirs["envFrom"]] == [
        {"secretRef": {"name": "retort-ray", "optional": True}}
    ]
    assert theirs["env"][-1] == mine["env"][0]
    assert theirs["resources"]["limits"].items() >= mine["resources"]["limits"].items()
    assert {volume["name"] for volume in worker["volumes"]} == {v["name"] for v in own["volumes"]}
    assert worker["terminationGracePeriodSeconds"] > LEAVE_SECONDS
    assert GROUP["minReplicas"] <= GROUP["replicas"] < GROUP["maxReplicas"]


def test_all_of_the_ray_cluster_have_one_image_one_token_and_a_port_that_says_they_live():
    head, worker = (group["template"]["spec"]["containers"][0] for group in (HEAD, GROUP))
    assert RAY_CLUSTER["metadata"]["namespace"] == VARIABLES["namespace"]
    assert RAY_CLUSTER["spec"]["rayVersion"] == version("ray")
    assert head["image"] == worker["image"] == ON_RAY["image"]
    token = {"secretKeyRef": {"name": "retort-ray", "key": "RAY_AUTH_TOKEN"}}
    for part in (head, worker, RAY_CLUSTER["spec"]["autoscalerOptions"]):
        known = {each["name"]: each.get("value", each.get("valueFrom")) for each in part["env"]}
        assert known.items() >= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}.items()
        assert part["securityContext"] == worker["securityContext"]
    assert "RAY_AUTH_MODE=token, RAY_AUTH_TOKEN=" in (FOLDER / "kustomization.yaml").read_text()
    for group, container in ((HEAD, head), (GROUP, worker)):
        (port,) = container["ports"]
        default = {"gcs-server": "6379"}.get(port["name"])
        assert str(port["containerPort"]) == group["rayStartParams"].get(
            f"{port['name']}-port", default
        )
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["tcpSocket"] == {"port": port["name"]}


def test_every_parameter_of_the_ray_cluster_is_an_option_of_ray_and_only_its_head_runs_no_work():
    for group in (HEAD, GROUP):
        given = group["rayStartParams"]
        flags = [
            f"--{name}" if value == "true" else f"--{name}={value}" for name, value in given.items()
        ]
        parsed(["ray", "start", *flags])
    assert HEAD["rayStartParams"]["num-cpus"] == "0" and "num-cpus" not in GROUP["rayStartParams"]


def test_a_run_on_the_ray_cluster_joins_it_with_the_token_and_takes_no_gpu():
    container = pod(job(**ON_RAY))["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert {"secretRef": {"name": "retort-ray", "optional": True}} in container["envFrom"]
    shell, option, script = shlex.split(container["args"])
    joins, runs = (shlex.split(line) for line in script.split(";"))
    assert (shell, option, runs) == ("sh", "-ec", ["exec", "prefect", "flow-run", "execute"])
    parsed(joins)
    parsed(runs)
    (port,) = (
        port["containerPort"]
        for port in HEAD["template"]["spec"]["containers"][0]["ports"]
        if port["name"] == "gcs-server"
    )
    # KubeRay names the service of a head by its cluster.
    named = f"{RAY_CLUSTER['metadata']['name']}-head-svc.{RAY_CLUSTER['metadata']['namespace']}"
    assert f"--address={named}:{port}" in joins
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(joins)
    assert f"--set cluster.ray={named}:{port}" in (FOLDER / "raycluster.yaml").read_text()


def test_only_pods_of_the_namespace_reach_the_ray_cluster():
    (policy,) = (m["spec"] for m in MANIFESTS if m["kind"] == "NetworkPolicy")
    assert policy["podSelector"] == {} and policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_the_worker_may_start_and_watch_jobs_and_nothing_else():
    role = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Role")
    rights = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights >= {
        ("jobs", "create"),
        ("jobs", "delete"),
        ("pods", "watch"),
        ("pods/log", "get"),
    }
    assert {resource for resource, verb in rights if verb not in ("get", "list", "watch")} <= {
        "jobs",
        "jobs/status",
    }
    assert not any("*" in pair or "secrets" in pair for pair in rights)
    assert not any(manifest["kind"].startswith("Cluster") for manifest in MANIFESTS)
    assert pod(job())["automountServiceAccountToken"] is False


def test_secrets_are_named_and_none_is_held():
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS}
    how = (FOLDER / "kustomization.yaml").read_text()
    everything = [*MANIFESTS, job(), RAY_CLUSTER]
    for reference in found(everything, "secretKeyRef") + found(everything, "secretRef"):
        assert f"create secret generic {reference['name']} " in how
    for reference in found([*MANIFESTS, RAY_CLUSTER], "secretKeyRef"):
        assert f"{reference['key']}=" in how
    for variables in found([*MANIFESTS, RAY_CLUSTER], "env"):
        for variable in variables:
            plain = "value" in variable and SECRETS.search(variable["name"])
            assert not plain or variable["name"].endswith(("_SECRET_NAME", "_SECRET_KEY"))


def test_both_servers_ask_for_a_login_and_answer_their_own_pages_only():
    known = {}
    for name in ("prefect", "mlflow"):
        container = PODS[name]["spec"]["containers"][0]
        known |= {variable["name"]: variable for variable in container["env"]}
    for name in ("PREFECT_SERVER_API_AUTH_STRING", mlflow_app.LOGIN):
        assert known[name]["valueFrom"]["secretKeyRef"]["name"] == "retort-servers"
    own = known["PREFECT_UI_API_URL"]["value"].removesuffix("/api")
    assert known["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]["value"] == own
    assert "--app-name retort" in " ".join(PODS["mlflow"]["spec"]["containers"][0]["args"])
    assert "*" not in known[mlflow_app.HOSTS]["value"]


def test_no_index_and_no_foreign_host_is_named():
    for path in FOLDER.iterdir():
        hosts = set(re.findall(r"://(?:\w+:\w+@)?([\w.-]+)", path.read_text()))
        assert hosts <= {"prefect.retort", "mlflow.retort", "127.0.0.1", "retort", "HOST"}, path
