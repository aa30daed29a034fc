"""Public benchmarks of a job's models by EleutherAI's harness, on tasks that lie in a folder here.

One job for all tests: its student stands in a store, its teacher is behind an endpoint that answers
every sum with the number it ends in.
"""

import argparse
import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.commands import benchmark as command
from flows.commands.options import on_spec
from retort import processes
from retort.errors import DataError, SpecError
from retort.events import SILENT
from retort.jobs import benchmark, reporting
from retort.jobs.benchmark import harness
from retort.jobs.benchmark.candidates import candidates, longest
from retort.jobs.benchmark.results import Manner, gathered
from retort.jobs.source_digests import source_digests
from retort.metrics.comparison import as_json
from retort.metrics.comparison.shapes import read_benchmarks
from retort.spec import JobSpec, load, recipes
from retort.stages.report.examples import side_by_side
from retort.stages.report.rendering import draw
from retort.store import open_store
from tests.support import report_content
from tests.support.misbehaving import SECRET, endpoint, running
from tests.support.tiny import save_model, write_rows

N, LIMIT = 20, 12
RUNTIME = {"timeout_seconds": 120.0, "num_threads": 1}


def write_tasks(folder: Path) -> Path:
    """A choice and an open question over the same sums, and a task whose data lie at a hub."""
    folder.mkdir()
    chosen, rows = random.Random(0), []
    for _ in range(N):
        a, b = chosen.randint(1, 99), chosen.randint(1, 99)
        options = [str(a + b), str(a + b + 1), str(a * b)]
        rows.append({"sum": f"{a} + {b} = ?", "options": options, "right": chosen.randint(0, 2)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = {"data_files": {"test": str(folder / "rows.jsonl")}}
    shared = {"dataset_path": "json", "dataset_kwargs": here, "test_split": "test"}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{sum}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    }
    text = {
        "output_type": "generate_until",
        "doc_to_text": "{{sum}}",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["?"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, task in {"tiny_choice": choice, "tiny_text": text}.items():
        whole = {"task": name, **shared, **task, "metadata": {"version": 2.0}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    other = {"task": "tiny_other", **shared, **choice, "doc_to_target": 0}
    (folder / "tiny_other.yaml").write_text(yaml.safe_dump(other))
    mean = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": "tiny_group", "task": ["tiny_choice", "tiny_other"]}
    (folder / "tiny_group.yaml").write_text(
        yaml.safe_dump({**group, "aggregate_metric_list": mean})
    )
    far = {"task": "tiny_far", **shared, **choice, "dataset_path": "nobody/nowhere"}
    (folder / "tiny_far.yaml").write_text(yaml.safe_dump({**far, "dataset_kwargs": {}}))
    return folder


def write_spec(folder: Path, url: str) -> Path:
    """A job whose teacher is behind an endpoint."""
    save_model(folder / "base", hidden=32, layers=1, seed=2)
    for split, n in {"train": 8, "test": 4}.items():
        write_rows(folder / f"{split}.jsonl", n, n)
    spec = {
        "name": "tiny",
        "prepare": {"task_type": "math", "train": "train.jsonl", "test": "test.jsonl"},
        "generate": {
            "teacher": "tiny",
            "engine": "openai",
            "endpoint": url,
            "api_key_env": "TINY_KEY",
            "top_k": 0,
        },
        "train": {"student": "base", "losses": [{"name": "cross_entropy"}]},
        "evaluate": {"num_bootstrap": 200, "runtime": RUNTIME},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    return folder / "job.yaml"


def make_student(spec: JobSpec, uri: str, student: Path) -> None:
    """Puts finished artifacts into a store, up to that which holds the student."""
    store, made = open_store(uri), dict[str, str]()
    for name, recipe in recipes(spec, source_digests(spec)).items():
        if name not in ("prepare", "generate", "curate", "train"):
            continue
        folder = store.artifact(recipe.stage, recipe.name)
        folder.write("facts.json", name.encode())
        if name == "train":
            folder.put_tree(student, "student")
        digests = {key: made[key] for key in recipe.inputs}
        made[name] = folder.commit({"input_digests": digests, "facts": {}}).digest


def run(root: Path, *flags: str) -> None:
    """The command as a user gives it, but for the process."""
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), on_spec())
    given = ["--store", str(root / "store"), "--include-path", str(root / "tasks")]
    tasks = ["--tasks", "tiny_group,tiny_text", "--engine", "transformers"]
    limit = ["--limit", str(LIMIT)]
    options = parser.parse_args(
        ["benchmark", str(root / "job.yaml"), *given, *tasks, *limit, *flags]
    )
    assert options.command(options) == 0


async def answers(seen: Any, request: web.Request, text: str) -> web.Response:
    """Says its key once, as some endpoints do, then every sum."""
    if len(seen.seen) == 1:
        return web.Response(status=500, text=f"bad key {request.headers['authorization']}")
    a, _, b = text.split()[:3]
    message = {"role": "assistant", "content": str(int(a) + int(b))}
    return web.json_response({"choices": [{"finish_reason": "stop", "message": message}]})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory):
    """A folder in which a benchmark has run, and what a hub on this machine was asked meanwhile."""
    root, hub = tmp_path_factory.mktemp("benchmark"), []

    async def listen(request: web.Request) -> web.Response:
        hub.append(request.path)
        return web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", listen)
    write_tasks(root / "tasks")
    with (
        pytest.MonkeyPatch.context() as patch,
        endpoint(answers) as (asked, url),
        running(app) as hub_url,
    ):
        patch.setenv("HF_HOME", str(root / "hub"))
        patch.setenv("HF_ENDPOINT", hub_url.removesuffix("/v1"))
        patch.setenv("TINY_KEY", SECRET)
        spec, _ = load(str(write_spec(root, url)), [])
        make_student(spec, str(root / "store"), save_model(root / "made", seed=3))
        run(root)
        yield {"root": root, "spec": spec, "hub": hub, "asked": asked, "patch": patch}


def content_of(job: dict[str, Any]) -> dict[str, Any]:
    return open_store(str(job["root"] / "store")).job("tiny").read_json("benchmarks.json")


def rows_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (job["root"] / "tasks/rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][:LIMIT]


def opened(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    chat = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def chosen(folder: Path, rows: list[dict[str, Any]]) -> list[int]:
    """Which option is the likeliest after each question, by a plain pass over prompt and option."""
    tokenizer, model = opened(folder)
    found = []
    for row in rows:
        prompt, sums = prompt_ids(tokenizer, row["sum"]), []
        for option in row["options"]:
            ids = list(tokenizer(option, add_special_tokens=False).input_ids)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
            sums.append(sum(float(logits[at, i]) for at, i in zip(places, ids, strict=True)))
        found.append(sums.index(max(sums)))
    return found


@pytest.mark.parametrize(("role", "folder"), [("base", "base"), ("student", "made")])
def test_choices_are_the_likeliest_by_our_own_sum(job, role, folder):
    rows = rows_of(job)
    given = chosen(job["root"] / folder, rows)
    right = [
        [a == row["right"] for a, row in zip(given, rows, strict=True)],
        [a == 0 for a in given],
    ]
    assert 0 < sum(map(sum, right)) < 2 * LIMIT
    found = content_of(job)["models"][role]["tiny_group"]["acc"]
    assert found["value"] == pytest.approx(sum(map(sum, right)) / (2 * LIMIT))
    shares = [sum(each) / LIMIT for each in right]
    # The harness pools the variances of a group's tasks, each with n - 1.
    spread = sum(LIMIT * p * (1 - p) for p in shares) / (2 * LIMIT - 2)
    assert found["stderr"] == pytest.approx(math.sqrt(spread / (2 * LIMIT)))


def test_what_was_asked_is_told(job):
    content = content_of(job)
    told = content["tasks"]["tiny_text"]
    assert (told["version"], told["n"], told["limit"], told["num_fewshot"]) == (
        2.0,
        LIMIT,
        LIMIT,
        0,
    )
    assert told["higher_is_better"] == {"exact_match": True}
    group = content["tasks"]["tiny_group"]
    assert (group["n"], group["num_tasks"]) == (2 * LIMIT, 2)
    assert content["engine"] == "transformers"
    assert content["max_length"] == 256  # what the tiny models take
    assert list(content["models"]) == ["teacher", "base", "student"]


def test_a_teacher_at_an_endpoint_is_asked_what_it_can_answer(job):
    content = content_of(job)
    assert content["models"]["teacher"] == {
        "tiny_text": {"exact_match": {"value": 1.0, "stderr": 0.0}}
    }
    assert any("tiny_group is not run on the teacher" in note for note in content["notes"])
    assert {body["model"] for body in job["asked"].bodies} == {"tiny"}


def test_a_difference_is_that_of_the_values(job):
    content = content_of(job)
    for role, tasks in content["differences"].items():
        for task, metrics in tasks.items():
            for metric, gap in metrics.items():
                own, other = (content["models"][r][task][metric] for r in ("student", role))
                assert gap["value"] == pytest.approx(own["value"] - other["value"])
                assert gap["low"] <= gap["value"] <= gap["high"]
                assert gap["n"] == content["tasks"][task]["n"]
    assert set(content["differences"]["base"]) == {"tiny_group", "tiny_text"}


def test_the_key_is_nowhere(job):
    written = [path for path in (job["root"] / "store").rglob("*") if path.is_file()]
    assert job["root"] / "store/logs/tiny.log" in written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_local_tasks_and_models_ask_no_hub(job):
    assert job["hub"] == []


def test_a_lost_result_alone_is_made_again_and_is_the_same(job, capsys):
    before = content_of(job)
    folder = job["root"] / "store/jobs/tiny/benchmarks"
    lost = folder / f"{before['keys']['teacher']['tiny_text']}.json"
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path != lost}
    result = json.loads(lost.read_bytes())
    lost.unlink()
    run(job["root"], "--json")
    out, err = capsys.readouterr()
    assert json.loads(lost.read_bytes()) == result
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads(out) == before == content_of(job)
    assert "base: tiny_group, tiny_text already finished" in err


def test_data_that_cannot_be_fetched_are_named(job):
    job["patch"].setenv("HF_HUB_OFFLINE", "1")
    settings = {"include_path": str(job["root"] / "tasks"), "num_fewshot": None, "limit": 2}
    with pytest.raises(DataError, match=r"task tiny_far: .*--include-path DIR"):
        processes.run(
            harness.plan,
            {"tasks": ["tiny_far"], "settings": settings},
            SILENT,
            job["root"] / "log",
            RUNTIME,
        )


def test_a_job_that_was_not_run_has_no_student(job, tmp_path):
    with pytest.raises(SpecError, match=r"student of this job is not in .*run the job first"):
        candidates(job["spec"], open_store(str(tmp_path)), ("student",))


def test_a_role_there_is_not_is_refused(job, tmp_path):
    with pytest.raises(SpecError, match=r"--models: fine_tuning is none of this job's models"):
        candidates(job["spec"], open_store(str(tmp_path)), ("fine_tuning",))


def test_no_model_is_given_more_than_it_takes(job):
    assert longest(job["spec"], None) == 256
    assert longest(job["spec"], 100) == 100
    with pytest.raises(SpecError, match="the base takes at most 256 tokens"):
        longest(job["spec"], 257)


def test_the_table_has_a_row_for_each_metric(job):
    content = content_of(job)
    heading, *rows = benchmark.table(read_benchmarks(content))
    minus = ["student - teacher", "student - base"]
    assert heading == ["task", "metric", "n", "teacher", "base", "student", *minus]
    assert [row[:3] for row in rows] == [
        ["tiny_text", "exact_match", "12"],
        ["tiny_group", "acc", "24"],
    ]
    assert rows[1][3] == "not asked"
    assert rows[1][5].startswith(
        f"{content['models']['student']['tiny_group']['acc']['value']:.4f}"
    )


def test_what_was_asked_before_stays_unless_it_was_asked_otherwise(job):
    store, before = open_store(str(job["root"] / "store")), content_of(job)
    names = ("lm_eval_version", "engine", "dtype", "max_length")
    manner = Manner(**{name: before[name] for name in names})
    own = before["keys"]["base"]
    again = gathered(job["spec"], store, manner, {"base": {"tiny_text": own["tiny_text"]}}, [])
    assert asdict(again) == before
    folder = store.job("tiny")
    result = folder.read_json(f"benchmarks/{own['tiny_text']}.json")
    folder.write_json("benchmarks/shorter.json", {**result, "limit": 5, "num_truncated": 3})
    keys = {"base": {"tiny_text": "shorter"}}
    otherwise = gathered(job["spec"], store, manner, keys, [])
    asked = {role: set(tasks) for role, tasks in otherwise.models.items()}
    both = {"tiny_group", "tiny_text"}
    assert asked == {"teacher": set(), "base": both, "student": {"tiny_group"}}
    assert otherwise.tasks["tiny_text"].limit == 5
    assert "3 prompts of the base lost their start" in otherwise.notes[-1]
    folder.remove("benchmarks/shorter.json")
    longer = gathered(job["spec"], store, replace(manner, max_length=512), {"base": own}, [])
    assert longer.models.keys() == {"base"}


def test_benchmarks_of_another_student_are_not_shown(job):
    store = open_store(str(job["root"] / "store"))
    own = content_of(job)["student"]
    assert asdict(benchmark.of_student(store, "tiny", own)) == content_of(job)
    assert benchmark.of_student(store, "tiny", "another") is None
    assert benchmark.of_student(store, "nobody", own) is None


def test_the_report_of_the_same_student_shows_them(job):
    store, content = open_store(str(job["root"] / "store")), content_of(job)
    assert not reporting.refresh(store, "tiny", content["student"])
    found = report_content.answered(20)
    whole = report_content.content(found)
    prints = {"train": content["student"], "report": "some"}
    whole = replace(whole, name="tiny", fingerprints=prints)
    made = json.loads(json.dumps(as_json(whole)))
    store.job("tiny").write_json("report.json", made)
    reported = store.artifact("report", "some")
    reported.write_json("examples.json", asdict(side_by_side(found)))
    reported.write_json("pictures.json", draw(whole))
    assert reporting.refresh(store, "tiny", content["student"])
    assert store.job("tiny").read_json("report.json") == {**made, "benchmarks": content}
    assert b"tiny_group" in store.job("tiny").read("report.html")
    assert not reporting.refresh(store, "tiny", "another")


def test_an_unknown_engine_or_folder_is_refused(job):
    store = open_store(str(job["root"] / "store"))
    for asked, why in (
        (benchmark.BenchmarkRequest(("x",), engine="echo"), "--engine: echo"),
        (
            benchmark.BenchmarkRequest(("x",), include_path="/nowhere"),
            "--include-path: there is no folder /nowhere",
        ),
    ):
        with pytest.raises(SpecError, match=why):
            benchmark.benchmark(job["spec"], store, asked, SILENT)
