"""Who may know whom, read from the imports of the whole house, those inside functions too."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("retort", "tasks", "flows")
# From the ground up: a box knows those on floors below it, and nothing beside or above it.
FLOORS = (
    ("retort.errors", "retort.events", "retort.records", "retort.plugins"),
    ("retort.spec", "retort.losses", "retort.processes"),
    ("retort.store",),
    ("retort.data", "retort.tracking"),
    ("retort.engines", "retort.metrics"),
    ("retort.stages",),
    ("retort.jobs",),
    ("retort.client",),
    ("retort",),  # the front door hands out the client
    ("tasks",),
    ("flows",),
)
# The nouns are four files of one box.
NOUNS = set(FLOORS[0])
SHARED = {
    "stage",
    "teacher_requests",
    "request_loop",
    "budget",
    "judge",
    "engine_settings",
    "teachers",
    "rounds",
}
# The one place of each heavy library: a box, or some files of it.
PLACES = {
    "prefect": ("tasks", "flows", "retort.client.server"),
    "mlflow": ("retort.tracking", "flows.mlflow_app"),
    "ray": ("retort.processes.ray_cluster", "retort.processes.cluster_run"),
    "fsspec": ("retort.store",),
    "s3fs": ("retort.store",),
    "datasets": ("retort.data.sources.hub",),
    "pyarrow": ("retort.data.sources",),
    "sklearn": ("retort.data.balance",),
    "py3langid": ("retort.data.text_stats",),
    "jsonschema": ("retort.data.text_stats",),
    "aiohttp": ("retort.engines",),
    "anthropic": ("retort.engines",),
    "httpx2": ("retort.engines",),
    "openai": ("retort.engines",),
    "vllm": ("retort.engines.vllm",),
    "gguf": ("retort.stages.export.formats", "retort.engines._gguf_header"),
    "llama_cpp": ("retort.stages.export.formats",),
    "xllamacpp": ("retort.engines._llama_server", "retort.engines._llama_endpoint"),
    "compressed_tensors": ("retort.stages.export.formats.compressed_tensors",),
    "onnx": ("retort.engines.onnx", "retort.stages.export.formats.onnx"),
    "onnxruntime_genai": ("retort.engines.onnx", "retort.stages.export.formats.onnx"),
    "rapidfuzz": ("retort.metrics.graders",),
    "lm_eval": ("retort.jobs.benchmark",),
    "optuna": ("retort.jobs.sweep.sampling",),
    "matplotlib": ("retort.metrics.comparison.drawing",),
    "torch": (
        "retort.processes.libraries",
        "retort.losses",
        "retort.engines",
        "retort.stages",
        "retort.jobs.benchmark",
    ),
}
# Where a library's keyword arguments are put together, its objects are looked up, or a runtime with
# a function is made.
ARGUMENTS = {
    "flows.databases",
    "retort.data.filters.candidate",
    "retort.data.sources.csv_tables",
    "retort.engines.transformers",
    "retort.engines.vllm",
    "retort.jobs.benchmark.harness",
    "retort.jobs.benchmark.scoring",
    "retort.jobs.sweep.sampling",
    "retort.stages.engine_settings",
    "retort.stages.evaluate.grading",
    "retort.stages.generate.parity",
    "retort.stages.report.plots",
    "retort.stages.train.checkpoint",
    "retort.stages.train.student",
    "retort.store.s3",
    "retort.tracking.flavor",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {name_of(path): ast.parse(path.read_text()) for path in paths}


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """The modules that a file imports, by their full names: of `from a import b` it is a.b where
    that is a module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found


def box_of(module: str) -> str:
    """The longest name among the boxes that the module stands in."""
    boxes = [box for floor in FLOORS for box in floor]
    inside = [box for box in boxes if module == box or module.startswith(f"{box}.")]
    return max(inside, key=len)


def floor_of(module: str) -> int:
    box = box_of(module)
    return next(index for index, floor in enumerate(FLOORS) if box in floor)


def stage_of(module: str) -> str | None:
    """The stage's folder that a module stands in; None for what stages share."""
    inside = module.removeprefix("retort.stages.").split(".")[0]
    is_stage = module.startswith("retort.stages.") and inside not in SHARED
    return inside if is_stage else None


def violations(module: str, tree: ast.Module, known: set[str]) -> list[str]:
    found = []
    for other in sorted(imported(tree, known)):
        top = other.split(".")[0]
        if top in PLACES and not any(f"{module}.".startswith(f"{p}.") for p in PLACES[top]):
            found.append(f"{module} imports {top}")
        if top not in ROOMS or other == module:
            continue
        mine, theirs = box_of(module), box_of(other)
        both_nouns = {mine, theirs} <= NOUNS
        if floor_of(other) > floor_of(module):
            found.append(f"{module} imports {other}, which is above it")
        elif mine != theirs and floor_of(other) == floor_of(module) and not both_nouns:
            found.append(f"{module} imports {other}, which is beside it")
        stages = stage_of(module), stage_of(other)
        if mine == theirs == "retort.stages" and stages[1] and stages[0] != stages[1]:
            found.append(f"{module} imports {other}, which is another stage's")
    return found


def test_every_import_goes_down_and_stages_never_meet():
    known = set(modules())
    assert len(known) > 150
    found = [v for name, tree in modules().items() for v in violations(name, tree, known)]
    assert found == []


def test_what_is_json_is_called_so():
    """`dict[str, Any]` is left for what is no JSON, and the names that define it."""
    plain = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "dict[str, Any]" in path.read_text()
    }
    assert plain == ARGUMENTS | {"retort.records", "retort.events", "retort.processes.fork_server"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("retort.stages.curate", "from retort.stages.generate import capture"),
        ("retort.stages.curate.check", "from retort.stages import generate"),
        ("retort.stages.judge", "def f():\n    from retort.stages.train import loop"),
        ("retort.jobs.run", "def f():\n    import prefect"),
        ("retort.store.files", "from retort.data import sources"),
        ("retort.spec.load", "from retort.losses import Target"),
        ("retort.errors", "from retort import spec"),
        ("tasks.stages", "from flows import distill"),
        ("retort.stages.report.rendering", "import mlflow.tracking"),
    ],
)
def test_a_violation_is_noticed(module, source):
    assert violations(module, ast.parse(source), set(modules()))


def test_no_modules_import_one_another_in_a_circle():
    known = set(modules())
    graph = {name: imported(tree, known) & known - {name} for name, tree in modules().items()}
    while free := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in free:
            del graph[name]
    assert graph == {}


def test_a_child_process_is_given_a_function_never_its_name():
    calls = [
        node
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "processes.run"
    ]
    assert len(calls) > 5
    for call in calls:
        assert isinstance(call.args[0], ast.Name | ast.Attribute), ast.unparse(call)


def test_the_deployments_folder_holds_configuration_only():
    assert not list((ROOT / "deployments").rglob("*.py"))
