"""Every command in the README and every spec in examples/ and in the README runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from retort.spec import JobSpec
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
# `make demo` runs it whole and through vLLM.
SMALL = [
    "prepare.limit=64",
    "train.num_epochs=1",
    "evaluate.limit=16",
    "curate.filters=[non_empty]",
]
SMALL += ["generate.engine=transformers", "evaluate.engine=echo"]
SMALL += ["generate.runtime.parity_samples=0", "evaluate.latency_samples=2"]
SMALL += ["evaluate.rounds=1", "evaluate.likelihood=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split() for line in lines if line.startswith(f"{program} ")]


def test_the_readme_shows_commands_of_both_kinds():
    assert commands("make")
    assert {words[1] for words in commands("retort")} == {
        "validate",
        "run",
        "why",
        "rows",
        "schema",
    }


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_every_make_target_of_the_readme_is_there(words):
    subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("words", commands("retort"), ids=" ".join)
def test_every_retort_command_of_the_readme_runs(words, retort, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    small = [f"--set={knob}" for knob in SMALL] if words[1] == "run" else []
    done = retort(*words[1:], *small)
    # So little training does not pass the gate; that it ran is what counts here.
    assert done.returncode == (3 if small else 0), done.stderr
    assert done.stdout or words[1] == "rows"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_spec_of_the_readme_is_a_valid_job(text):
    spec = JobSpec.model_validate(yaml.safe_load(text))
    assert spec.train.student == "./models/base"
    assert spec.generate.teacher in ("./models/teacher", "gpt-4o")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/job.yaml")), ids=str)
def test_every_example_says_what_it_shows_costs_and_what_to_expect(path: Path):
    opening = path.read_text().split("\nname:")[0]
    assert all(word in opening for word in ("Shows", "Costs", "Expect"))


def test_the_wheel_holds_the_three_packages_and_gives_the_command(tmp_path):
    import zipfile

    uv = ROOT / ".venv/bin/uv"
    subprocess.run([uv, "build", "--wheel", "-q", "-o", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(n for n in names if n.endswith("entry_points.txt"))
        assert "retort = flows.cli:main" in archive.read(entry).decode()
    tops = {name.split("/")[0] for name in names if not name.startswith("retort-")}
    assert tops == {"retort", "tasks", "flows"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_no_package_index_is_named_in_a_lock():
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        assert "://" not in text
        assert re.search(r"^prefect==", text, flags=re.M)
        assert re.search(r"^vllm(-cpu)?==", text, flags=re.M)
