"""The lines of Python that Azure's users know, word for word, on tiny models that bear the names of
the catalogue: in a cache of the hub, or behind a vLLM server."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from retort.stages.stage import read_responses
from retort.store import Folder
from tests.support import answering, servers
from tests.support.answering import Lesson
from tests.support.servers import ROOT, environment

SNIPPET = """
from retort import MLClient, DistillationJob        # MLClient: another name of RetortClient
ml_client = MLClient.from_config()                  # store and servers from the environment or ./retort.yaml
job = DistillationJob(teacher_model="deepseek-v3", student_model="phi-4-mini", training_data="./training_data.jsonl",
    validation_data="./validation_data.jsonl", task_type="conversation",
    hyperparameters={"learning_rate": 2e-5, "batch_size": 2, "num_epochs": 3, "temperature": 0.7})
job = ml_client.jobs.create_or_update(job)
print(ml_client.jobs.get(job.name).status)
results = ml_client.models.evaluate(model_name="phi-4-mini-distilled", test_data="./test_data.jsonl", metrics=["accuracy", "bleu_score", "inference_time"])
baseline = ml_client.models.evaluate(model_name="phi-4-mini-baseline", test_data="./test_data.jsonl")
print(results["accuracy"] - baseline["accuracy"])   # numbers; intervals stand beside them, as results.metrics["accuracy"].low
"""  # noqa: E501
COLOURS = {
    "red": "apple rose brick cherry ruby",
    "green": "grass frog leaf moss lime",
    "blue": "sky sea ink jeans",
    "white": "snow milk salt cloud chalk",
    "black": "coal raven tar crow soot",
    "yellow": "lemon sun corn honey banana",
}
ASKED = [(thing, colour) for colour, things in COLOURS.items() for thing in things.split()]
CHATS = [
    [
        {"role": "user", "content": f"Which colour has the {thing}?"},
        {"role": "assistant", "content": f"The {thing} is {colour}."},
    ]
    for thing, colour in ASKED
]
FILES = {
    "training_data": CHATS[::2],
    "validation_data": CHATS[1::4],
    "test_data": CHATS[3::4],
}
# What a user would look at next.
AFTERWARDS = """
import json
state = ml_client.jobs.get(job.name)
scores = {name: vars(score) for name, score in results.metrics.items()}
print(json.dumps([state.name, state.status, results.model, scores, dict(baseline)]))
"""
# One waits for all; the other has seen the teacher's answers and goes no further.
ENDINGS = {
    "completed": "print(ml_client.jobs.wait(job.name))",
    "cancelled": """
import time
BEFORE = (None, "prepare", "generate", "curate")
while (state := ml_client.jobs.get(job.name)).stage in BEFORE and not state.is_over:
    time.sleep(0.2)
print(ml_client.jobs.cancel(job.name))
""",
}


def keep(home: Path, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Puts a model where the hub's own client keeps one that it has fetched."""
    kept = home / "hub" / f"models--{name.replace('/', '--')}"
    commit = f"{len(name):040x}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text(commit)
    model.save_pretrained(kept / "snapshots" / commit)
    tokenizer.save_pretrained(kept / "snapshots" / commit)
    return kept / "snapshots" / commit


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cache of the hub with a teacher that knows the answers and a student that knows some; and
    the folders of both."""
    home = tmp_path_factory.mktemp("hub")
    tokenizer = answering.train_tokenizer([turn["content"] for chat in CHATS for turn in chat])
    lessons = [Lesson(chat[:1], chat[1]["content"]) for chat in CHATS]
    teacher = answering.make_model(tokenizer, 64, 2)
    answering.teach(teacher, tokenizer, lessons, 300)
    student = answering.make_model(tokenizer, 64, 2)
    answering.teach(student, tokenizer, lessons, 200)
    names = {"deepseek-ai/DeepSeek-V3": teacher, "microsoft/Phi-4-mini-instruct": student}
    return home, [keep(home, name, model, tokenizer) for name, model in names.items()]


@pytest.fixture(scope="module")
def at_endpoint(models, tmp_path_factory):
    """The address of a vLLM server that has the teacher by the names of two providers' models."""
    home = tmp_path_factory.mktemp("served")

    def start(home: Path) -> str:
        names = ("gpt-4", "claude-3-5-sonnet-20241022")
        return servers.vllm_with(home, models[1][0], *names)

    try:
        yield servers.shared(home, start)
    finally:
        servers.end_all(home)


@pytest.fixture
def typed(models, tmp_path):
    """Runs lines as the program that a user wrote, in a folder with the three files; returns what
    it prints."""
    for name, chats in FILES.items():
        rows = [json.dumps({"messages": chat}) + "\n" for chat in chats]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "retort.yaml").write_text("store: work\n")

    def run(program: str, **env: str) -> list[str]:
        (tmp_path / "program.py").write_text(program)
        done = subprocess.run(
            [sys.executable, "program.py"],
            capture_output=True,
            text=True,
            timeout=600,
            env=environment(HF_HOME=str(models[0]), OMP_NUM_THREADS="1", **env),
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@torch.inference_mode()
def share_right(folder: Path) -> float:
    """The share of the test's chats to which a model gives the expected reply, asked greedily."""
    model, right = AutoModelForCausalLM.from_pretrained(folder).eval(), 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question, expected in FILES["test_data"]:
        ids = tokenizer.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
        (found,) = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
        reply = tokenizer.decode(found[len(ids) :], skip_special_tokens=True)
        right += reply == expected["content"]
    return right / len(FILES["test_data"])


def test_the_documents_show_the_snippet_and_nothing_else():
    page = (ROOT / "docs/operations.md").read_text()
    (shown,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "MLClient" in b)
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(SNIPPET))


def test_the_snippet_runs_word_for_word(typed, models, tmp_path):
    status, difference, rest = typed(SNIPPET + AFTERWARDS)
    name, ended, asked, scores, baseline = json.loads(rest)
    assert (status, name, ended) == ("running", "phi-4-mini-distilled", "completed")
    assert asked == "phi-4-mini-distilled/1"
    assert list(scores) == ["accuracy", "bleu_score", "inference_time"]
    accuracy = scores["accuracy"]
    (released,) = (tmp_path / "work/artifacts/release").glob("*/model")
    assert accuracy["value"] == share_right(released)
    assert 0 < baseline["accuracy"] == share_right(models[1][1]) < 1
    assert float(difference) == accuracy["value"] - baseline["accuracy"]
    assert accuracy["meaning"] == "agreement with the expected reply"
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"] and score["low"] < score["high"]
    assert scores["accuracy"]["n"] == scores["bleu_score"]["n"] == len(FILES["test_data"])
    assert scores["inference_time"]["low"] > 0


@pytest.mark.parametrize(
    "case",
    [("gpt-4", "OPENAI", "completed"), ("claude-3.5-sonnet", "ANTHROPIC", "cancelled")],
)
def test_a_teacher_of_a_provider_answers_behind_its_address(case, typed, at_endpoint, tmp_path):
    teacher, provider, ended = case
    started, _, _ = SNIPPET.replace("deepseek-v3", teacher).partition("results =")
    told = typed(
        started + ENDINGS[ended],
        **{f"{provider}_BASE_URL": at_endpoint, f"{provider}_API_KEY": "a-key"},
    )
    assert told[0] == "running" and f"status='{ended}'" in told[1]
    (generated,) = (tmp_path / "work/artifacts/generate").iterdir()
    facts = Folder(str(generated)).manifest()["facts"]
    assert (facts["engine"], facts["endpoint"]) == (provider.lower(), at_endpoint)
    said = [response.text for response in read_responses(Folder(str(generated)))]
    assert len(said) == len(FILES["training_data"]) + len(FILES["validation_data"])
    # It is sampled at 0.7: the form of nearly all replies is sure, a colour is not.
    assert sum(bool(re.fullmatch(r"The \w+ is \w+\.", text)) for text in said) > 0.8 * len(said)
