"""Who may know whom, enforced on the imports of the whole repository."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"prepare", "generate", "curate", "train", "evaluate", "report", "release"}
DOORS = {
    "mlflow": {f"retort/tracking/{path.name}" for path in (ROOT / "retort/tracking").glob("*.py")},
    "fsspec": {"retort/store/__init__.py", "retort/store/urls.py"},
    "datasets": {"retort/data/sources/hub.py"},
    "pyarrow": {"retort/data/sources/parquet_rows.py"},
    "matplotlib": {"retort/stages/report/drawing.py"},
    "sklearn": {"retort/data/balance.py"},
    "py3langid": {"retort/data/text_stats.py"},
    "jsonschema": {"retort/data/text_stats.py"},
    "aiohttp": {"retort/engines/_endpoint.py"},
    "vllm": {"retort/engines/vllm.py"},
    "lm_eval": {
        f"retort/jobs/benchmark/{name}.py" for name in ("harness", "opening", "scoring", "endpoint")
    },
    "s3fs": set(),
}


# Files that meet another stage by import until the card and the licences are read from artifacts.
TO_MEND = {
    "retort/stages/curate/data_card/drawing.py",
    "retort/stages/report/markdown.py",
    "retort/stages/report/html.py",
    "retort/stages/release/model_card.py",
}


def imported(source: str) -> set[str]:
    """The full names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def violations(path: str, source: str) -> list[str]:
    """What a file of the repository imports and may not."""
    room, names = path.split("/", maxsplit=1)[0], imported(source)
    tops = {name.split(".")[0] for name in names}
    forbidden = {"retort": {"prefect", "tasks", "flows"}, "tasks": {"flows"}}.get(room, set())
    found = [f"{path} imports {top}" for top in sorted(tops & forbidden)]
    found += [f"{path} imports {top}" for top in DOORS if top in tops and path not in DOORS[top]]
    own = path.removeprefix("retort/stages/").removesuffix(".py").split("/")[0]
    if path.startswith("retort/stages/") and own in STAGES and path not in TO_MEND:
        others = {name for stage in STAGES - {own} for name in names if is_stage(name, stage)}
        found += [f"{path} is a stage and imports {name}" for name in sorted(others)]
    return found


def is_stage(name: str, stage: str) -> bool:
    return name == f"retort.stages.{stage}" or name.startswith(f"retort.stages.{stage}.")


def test_every_import_stays_within_its_layer():
    files = [p for room in ("retort", "tasks", "flows") for p in (ROOT / room).rglob("*.py")]
    assert len(files) > 30
    found = [v for p in files for v in violations(str(p.relative_to(ROOT)), p.read_text())]
    assert found == []


def test_a_violation_is_noticed():
    assert violations(
        "retort/stages/curate/__init__.py", "from retort.stages.generate import capture"
    )
    assert violations("retort/stages/curate/__init__.py", "from retort.stages import generate") == [
        "retort/stages/curate/__init__.py is a stage and imports retort.stages.generate"
    ]
    assert violations("retort/jobs/run.py", "def f():\n    import prefect")
    assert violations("tasks/stages.py", "from flows import distill")
    assert violations("retort/report.py", "import mlflow.tracking")
