"""Every command and spec of README.md and docs/ runs, and the reference is that of the spec."""

import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from openai import OpenAI

from retort.spec import JobSpec, reference
from tests.support import command
from tests.support.servers import BIN, ROOT, free_port

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
# `make demo` runs it whole and through vLLM.
SMALL = [
    "prepare.limit=64",
    "train.num_epochs=1",
    "evaluate.limit=16",
    "curate.filters=[non_empty]",
    "generate.engine=transformers",
    "evaluate.engine=echo",
    "generate.runtime.parity_samples=0",
    "evaluate.latency_samples=2",
    "evaluate.rounds=1",
    "evaluate.likelihood=false",
]
# They need jobs that have run: those of the lines before them.
OF_FINISHED_JOBS = ("export", "compare", "benchmark", "promote", "serve", "shadow")
# Its commands need servers: tests/stages/test_scale.py reads them with the commands' own parsers.
SERVERS = "operations.md"


def blocks(language: str, *without: str) -> list[str]:
    texts = [text for name, text in sorted(PAGES.items()) if name not in without]
    return [b for text in texts for b in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)]


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("bash", SERVERS) for line in block.splitlines()]
    return [line.split() for line in lines if line.startswith(f"{program} ")]


def test_readme_is_short_and_leads_to_every_page():
    readme = PAGES["README.md"]
    assert readme.count("\n") <= 140
    assert all(f"(docs/{name})" in readme for name in PAGES if name != "README.md")


def test_every_link_between_the_pages_leads_somewhere():
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert [link for link in links if not (folder / link).exists()] == []


def test_the_reference_is_made_from_the_spec_as_it_is():
    assert PAGES["reference.md"] == reference.page() + "\n"


def test_the_documents_show_commands_of_both_kinds():
    assert commands("make")
    assert {"validate", "run", "why", "rows", "schema", *OF_FINISHED_JOBS} == {
        words[1] for words in commands("retort")
    }


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_every_make_target_of_the_documents_is_there(words):
    subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory, prefect_url):
    """A folder with the examples, in which commands run as a user would run them."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.fixture
def run(place, prefect_url):
    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        return command.run(*words, cwd=place, PREFECT_API_URL=prefect_url)

    return call


def served(words: list[str], place: Path) -> None:
    """Starts a server, asks it as a client does, and ends it as Ctrl-C does."""
    port = free_port()
    command = [str(BIN / "retort"), *words[1:], "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=place) as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("OPENAI_BASE_URL=http://127.0.0.1:") for line in lines)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        chat = [{"role": "user", "content": "Ann has 3 pens. She buys 4. How many has she?"}]
        said = client.chat.completions.create(model=words[2], messages=chat, max_tokens=8)
        assert said.choices[0].message.content
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130


@pytest.mark.parametrize(
    "words",
    sorted(commands("retort"), key=lambda words: (words[1] in OF_FINISHED_JOBS, words[1] != "run")),
    ids=" ".join,
)
def test_every_retort_command_of_the_documents_runs(words, run, place):
    if words[1] == "serve":
        served(words, place)
        return
    small = [f"--set={knob}" for knob in SMALL]
    if words[1] == "compare":
        # The other job that the line names.
        named = f"--set=name={words[3]}"
        assert run("run", "examples/quickstart/job.yaml", *small, named).returncode == 3
    more = {
        "run": small,
        "export": small,
        "benchmark": [*small, "--limit=4", "--engine=transformers"],
    }
    done = run(*words[1:], *more.get(words[1], []))
    # So little training does not pass the gate, and what did not pass is not promoted.
    assert done.returncode == (3 if words[1] in ("run", "export", "promote") else 0), done.stderr
    assert done.stdout or words[1] == "rows"


@pytest.mark.parametrize("text", blocks("yaml", SERVERS))
def test_every_spec_of_the_documents_is_a_valid_job(text):
    spec = JobSpec.model_validate(yaml.safe_load(text))
    assert spec.cut or spec.train.student == "./models/base"
    assert spec.generate.teacher in ("./models/teacher", "gpt-4o")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/job.yaml")), ids=str)
def test_every_example_says_what_it_shows_costs_and_what_to_expect(path: Path):
    opening = path.read_text().split("\nname:")[0]
    assert all(word in opening for word in ("Shows", "Costs", "Expect"))


def test_the_wheel_holds_the_four_packages_and_gives_the_command(tmp_path):
    uv = ROOT / ".venv/bin/uv"
    subprocess.run([uv, "build", "--wheel", "-q", "-o", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(n for n in names if n.endswith("entry_points.txt"))
        assert "retort = flows.cli:main" in archive.read(entry).decode()
    tops = {name.split("/")[0] for name in names if not name.startswith("retort-")}
    assert tops == {"retort", "tasks", "flows", "deployments"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_no_package_index_is_named_in_a_lock():
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        assert "://" not in text
        assert re.search(r"^prefect==", text, flags=re.M)
        assert re.search(r"^vllm(-cpu)?==", text, flags=re.M)
