"""The released folder: it loads where people load models, answers as it did in the evaluation,
holds nothing that runs code, and its card says what it is, by its own snippets too.

A real tiny student is trained and compared in this process, by the engine transformers.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from retort.errors import StageError
from retort.events import SILENT
from retort.jobs.run import JobRun
from retort.records import Response, read_lines
from retort.spec import build
from retort.stages.curate import curate
from retort.stages.evaluate import evaluate
from retort.stages.evaluate.measure import measure
from retort.stages.prepare import prepare
from retort.stages.release import generation_config, release
from retort.stages.report import report
from retort.stages.stage import Stage
from retort.stages.train.loop import fit
from retort.store import Artifact, Folder, open_store
from tests.support import training
from tests.support.servers import environment
from tests.support.tiny import save_model

SECRET_PLACE = "somebodys-own-folder"
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
MANY = {"num_epochs": 8, "learning_rate": 3e-3, "runtime": {"num_threads": 1}}


def trained(stage: Stage) -> dict[str, Any]:
    return fit(stage.arguments(), SILENT)


def evaluated(stage: Stage) -> dict[str, Any]:
    """As evaluate finds it when a process has measured each model and then was killed."""
    student = f"{stage.inputs['train'].uri}/student"
    models = {"teacher": stage.spec.generate.teacher, "base": stage.spec.train.student}
    for role, model in {**models, "student": student}.items():
        found = measure(stage.arguments(), role, model, 1, SILENT)
        stage.out.write_json(f"measures-{role}-1.json", found)
    return evaluate(stage)


STAGES = {
    "prepare": prepare,
    "generate": training._captured,
    "curate": curate,
    "train": trained,
    "evaluate": evaluated,
    "report": report,
    "release": release,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, Artifact]:
    """The artifacts of a whole small job."""
    folder = tmp_path_factory.mktemp("release") / SECRET_PLACE
    teacher = save_model(folder / "teacher", hidden=64, seed=1)
    base = save_model(folder / "base", hidden=32, layers=1, seed=2)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    losses = [{"name": "cross_entropy"}]
    raw = training.job(folder, teacher, base, losses=losses, **MANY)
    raw["evaluate"] = {"engine": "transformers", "rounds": 1, "latency_samples": 2}
    raw["evaluate"] |= {"likelihood": False, "num_bootstrap": 100, "max_tokens": 12}
    raw["generate"] |= {"top_k": 0, "min_success_ratio": 0.0}
    raw["release"] = {"intended_use": "Adding 7 to small numbers."}
    return made(JobRun(build(raw), open_store(str(folder / "store")), (), lambda name, event: None))


def made(job: JobRun) -> dict[str, Artifact]:
    """Every stage's artifact, made in this process as the job would in its children."""
    found: dict[str, Artifact] = {}
    for name, recipe in job.recipes.items():
        inputs = {key: found[key] for key in recipe.inputs}
        out = job.store.artifact(recipe.stage, recipe.name)
        stage = Stage(recipe.stage, recipe.spec, job.store, inputs, out, SILENT, job.log)
        facts = STAGES[recipe.stage](stage)
        found[name] = out.commit({"facts": facts, "ingredients": recipe.ingredients})
    return found


@pytest.fixture(scope="module")
def folder(done) -> Path:
    return Path(done["release"].uri) / "model"


@pytest.fixture(scope="module")
def card(folder) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def answers(done: dict[str, Artifact]) -> dict[str, str]:
    """What the student said in the evaluation, by what it was asked."""
    lines = Folder(done["evaluate"].uri).read("answers-student.jsonl")
    said = {response.id: response for response in read_lines(Response, lines)}
    rows = Folder(done["prepare"].uri).read("test-00000.jsonl").splitlines()
    asked = {row["id"]: row["messages"][-1]["content"] for row in map(json.loads, rows)}
    return {asked[key]: response.text for key, response in said.items()}


def test_transformers_loads_it_and_it_answers_as_in_the_evaluation(done, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question, text in answers(done).items():
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        new = out[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == text != ""


def snippet(card: ModelCard, library: str, question: str) -> str:
    """The card's code for a library, asking a question where the card lies."""
    (code,) = [code for code in SNIPPET.findall(card.text) if f"from {library} " in code]
    assert code.count('"..."') == 1
    return code.replace('"..."', repr(question)).replace("where this card lies", ".")


def test_the_cards_snippet_for_transformers_gives_the_evaluations_answer(
    done, folder, card, capsys, monkeypatch
):
    (question, text), *_ = answers(done).items()
    monkeypatch.chdir(folder)
    exec(snippet(card, "transformers", question), {})
    assert capsys.readouterr().out.rstrip("\n") == text


def test_the_cards_snippet_for_vllm_gives_the_evaluations_answer(done, folder, card):
    (question, text), *_ = answers(done).items()
    room = "dtype='float32', enforce_eager=True, kv_cache_memory_bytes=1 << 26"
    code = snippet(card, "vllm", question)
    code = code.replace('LLM(".")', f'LLM(".", {room}, max_model_len=128)')
    more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=environment(**more),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.rstrip("\n").splitlines()[-1] == text


def test_the_folder_is_whole_and_holds_nothing_that_runs_code(folder):
    names = {path.name for path in folder.rglob("*")}
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert {Path(name).suffix for name in names} <= {".md", ".jinja", ".json", ".safetensors"}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_front_matter_is_what_the_hub_reads(card):
    front = card.data.to_dict()
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert front["license"] == "apache-2.0"  # the base's own card says so
    assert front["tags"][:2] == ["distillation", "retort"]
    assert "base_model" not in front  # a folder is no id of the Hub's
    assert card.data.model_name == "sums"


def test_the_card_tells_scores_data_filters_gate_use_and_licences_and_no_place(done, card):
    told = Folder(done["report"].uri).read_json("report.json")
    sources = Folder(done["prepare"].uri).read_json("manifest.json")["ingredients"]["sources"]
    assert sources["prepare.train"][:16] in card.text
    assert "Filters: non_empty. 20 of 20 responses were kept." in card.text
    assert "Adding 7 to small numbers." in card.text
    outcome = "passed" if told["gate"]["passed"] else "refused"
    assert f"It {'passed' if outcome == 'passed' else 'was refused'}:" in card.text
    assert "- teacher: No licence was found." in card.text
    assert "- base: apache-2.0 (by README.md of the model); distillation: allowed." in card.text
    for role in ("teacher", "base", "student"):
        assert role in card.text.split("## Scores")[1].split("## Gate")[0]
    assert "95% interval" in card.text
    everything = card.content + Folder(done["release"].uri).read("gate.json").decode()
    assert SECRET_PLACE not in everything


def test_the_registry_is_told_the_scores_with_their_intervals(done):
    facts = Folder(done["release"].uri).read_json("manifest.json")["facts"]
    told = Folder(done["report"].uri).read_json("report.json")
    student = told["models"]["student"]
    metric = told["comparison"]["metric"]
    assert facts["scores"][metric] == student["metrics"][metric]["value"]
    assert facts["scores"][f"{metric}_low"] == student["metrics"][metric]["low"]
    assert facts["scores"]["latency_seconds_p50"] == student["latency_seconds"]["p50"]
    assert all(isinstance(value, float) for value in facts["scores"].values())
    assert facts["source"] == f"{done['release'].uri}/model"


def test_a_file_that_runs_code_when_loaded_is_no_release(done, tmp_path):
    shutil.copytree(done["train"].uri, tmp_path / "train")
    (tmp_path / "train/student/pytorch_model.bin").write_bytes(b"a pickle")
    inputs = {**done, "train": replace(done["train"], uri=str(tmp_path / "train"))}
    spec = build(json.loads(json.dumps(raw_of(done))))
    out = Folder(str(tmp_path / "out"))
    stage = Stage("release", spec, open_store(str(tmp_path)), inputs, out, SILENT, tmp_path / "log")
    with pytest.raises(StageError, match=r"pytorch_model\.bin may run code"):
        release(stage)
    assert not (tmp_path / "out/model").exists()


def raw_of(done: dict[str, Artifact]) -> dict[str, Any]:
    found = Folder(done["report"].uri).read_json("report.json")["ran"]["spec"]
    assert isinstance(found, dict)
    return found


def test_an_end_token_that_no_generation_config_names_is_filled_in(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    assert generation_config(tmp_path / "model") == {"eos_token_id": 2}  # config.json says it
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    assert generation_config(tmp_path / "model") == {"eos_token_id": 2}  # the tokenizer says it
    settings = tmp_path / "model/tokenizer_config.json"
    without = {k: v for k, v in json.loads(settings.read_text()).items() if k != "eos_token"}
    settings.write_text(json.dumps(without))
    with pytest.raises(StageError, match="which token ends an answer"):
        generation_config(tmp_path / "model")
