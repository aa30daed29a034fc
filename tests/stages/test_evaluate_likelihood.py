"""Perplexity and KL to the teacher, against slow forward passes of one row at a time."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from retort.data.encoding import load_tokenizer, render_one
from retort.events import SILENT
from retort.records import Response, write_lines
from retort.stages.evaluate import likelihood as measured
from retort.stages.evaluate.likelihood import likelihood
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.store import Folder, model_folder
from tests.support.stages import stage_of
from tests.support.tiny import save_model
from tests.support.training import job

END = 2  # the models' end token
WORDS = ["3 and 7 is 10", "4 and 7 is 11", "so 12", "It is 13.", "14", "15"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, a base with a padded embedding, and six rows with written-out answers."""
    folder = tmp_path_factory.mktemp("likelihood")
    save_model(folder / "teacher", seed=1)
    save_model(folder / "base", hidden=32, layers=1, seed=2, vocabulary=128)
    return folder


def stage(folder: Path, out: Path, answers: list[str] | None = None) -> Stage:
    """A stage whose test rows have these answers, none where none is given, and whose teacher has
    answered, once cut off."""
    raw = job(folder, folder / "teacher", folder / "base")
    rows = [{"id": f"q{n}", "question": f"{n} + 7 = ?"} for n in range(6)]
    for row, answer in zip(rows, answers or [], strict=False):
        row["answer"] = answer
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = stage_of("prepare", raw, str(out / "store"), {})
    first.out.commit({"facts": prepare(first)})
    found = stage_of("evaluate", raw, str(out / "store"), {"prepare": first.out.finished()})
    found = replace(found, out=Folder(str(out)))
    tokenizer = load_tokenizer(str(folder / "teacher"))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in WORDS]
    given = [
        Response(f"q{n}", WORDS[n], ids[n] + ([END] if n else []), "stop" if n else "length", 9, 9)
        for n in range(6)
    ]
    given[0] = replace(given[0], state="truncated")
    found.out.write("answers-teacher.jsonl", write_lines(given))
    return found


def logprobs(folder: Path, model: str, number: int, ids: list[int]) -> torch.Tensor:
    """What predicts each of the ids after the number's question, by a plain forward pass."""
    tokenizer = load_tokenizer(str(folder / model))
    prompt = render_one(tokenizer, [{"role": "user", "content": f"{number} + 7 = ?"}])
    opened = AutoModelForCausalLM.from_pretrained(folder / model, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = opened(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits[:, : len(tokenizer)], dim=-1)


def ids_of(folder: Path, text: str) -> list[int]:
    return load_tokenizer(str(folder / "teacher"))(text, add_special_tokens=False)["input_ids"]


def folders(folder: Path, *roles: str) -> dict[str, str]:
    return {role: str(folder / role) for role in roles}


@pytest.mark.parametrize("top_k", [1 << 20, 8])
def test_kl_and_perplexity_are_those_of_plain_forward_passes(folder, tmp_path, monkeypatch, top_k):
    monkeypatch.setattr(measured, "TOP_K", top_k)
    asked = stage(folder, tmp_path, [f"the answer is {n + 7}" for n in range(5)])
    found = likelihood(asked.arguments(), folders(folder, "teacher", "base"), SILENT)
    assert found["perplexity_of"] == "reference" and found["notes"] == []
    assert found["statistics"]["teacher"]["kl_to_teacher"] == {}
    for role in ("teacher", "base"):
        values = found["statistics"][role]["perplexity"]
        assert {*values} == {f"q{n}" for n in range(5)}  # the last row has no answer of its own
        for n in range(5):
            ids = [*ids_of(folder, f"the answer is {n + 7}"), END]
            nats = -logprobs(folder, role, n, ids)[range(len(ids)), ids].sum()
            assert values[f"q{n}"] == [pytest.approx(float(nats), rel=1e-4), len(ids)]
    values = found["statistics"]["base"]["kl_to_teacher"]
    assert {*values} == {f"q{n}" for n in range(6)}
    for n in range(6):
        ids = ids_of(folder, WORDS[n]) + ([END] if n else [])
        teacher, base = (logprobs(folder, role, n, ids) for role in ("teacher", "base"))
        dense = (teacher.exp() * (teacher - base)).sum()
        wanted = dense if top_k > 100 else bucketed(teacher, base, top_k)
        assert values[f"q{n}"] == [pytest.approx(float(wanted), rel=1e-3, abs=1e-5), len(ids)]
        assert values[f"q{n}"][0] <= float(dense) * 1.0001


def bucketed(teacher: torch.Tensor, base: torch.Tensor, k: int) -> float:
    """KL over the teacher's k most probable ids and one bucket for the others, token by token."""
    total = 0.0
    for p, q in zip(teacher.exp().tolist(), base.exp().tolist(), strict=True):
        top = sorted(range(len(p)), key=lambda i: -p[i])[:k]
        total += sum(p[i] * math.log(p[i] / q[i]) for i in top)
        rest_p, rest_q = (1 - sum(r[i] for i in top) for r in (p, q))
        total += rest_p * math.log(rest_p / rest_q)
    return total


@pytest.mark.parametrize("answers", [None, [str(n + 7) for n in range(6)]])
def test_without_written_out_answers_perplexity_is_of_the_teachers(folder, tmp_path, answers):
    asked = stage(folder, tmp_path, answers)
    found = likelihood(asked.arguments(), folders(folder, "teacher", "base"), SILENT)
    assert found["perplexity_of"] == "teacher"
    for role in ("teacher", "base"):
        for n in range(6):
            ids = ids_of(folder, WORDS[n]) + ([END] if n else [])
            nats = -logprobs(folder, role, n, ids)[range(len(ids)), ids].sum()
            values = found["statistics"][role]["perplexity"][f"q{n}"]
            assert values == [pytest.approx(float(nats), rel=1e-4), len(ids)]


def test_the_answer_alone_counts_where_the_teacher_writes_no_more(folder, tmp_path):
    asked = stage(folder, tmp_path, [str(n + 7) for n in range(6)])
    plain = [Response(f"q{n}", f"{n + 7}", [], "stop", 9, 9) for n in range(6)]
    asked.out.write("answers-teacher.jsonl", write_lines(plain))
    found = likelihood(asked.arguments(), folders(folder, "base"), SILENT)
    assert found["perplexity_of"] == "reference"


def test_a_model_with_other_ids_has_no_kl_and_one_that_is_none_a_note(folder, tmp_path):
    other = tmp_path / "other"
    save_model(other, hidden=32, layers=1, seed=4, vocabulary=128)
    tokenizer = load_tokenizer(str(other))
    tokenizer.add_tokens(["is"])
    tokenizer.save_pretrained(other)
    assert model_folder.token_map(other) != model_folder.token_map(folder / "teacher")
    (tmp_path / "broken").mkdir()
    asked = stage(folder, tmp_path / "out")
    given = {
        **folders(folder, "teacher"),
        "base": str(other),
        "student": str(tmp_path / "broken"),
        "gold": str(folder / "base"),
    }
    found = likelihood(asked.arguments(), given, SILENT)
    base = found["statistics"]["base"]
    assert base["kl_to_teacher"] == {} and len(base["perplexity"]) == 6
    # Of its own tokens: "is" is one.
    assert base["perplexity"]["q1"][1] == len("4 and 7 is 11") - 1 + 1
    assert len(found["statistics"]["gold"]["kl_to_teacher"]) == 6
    assert "student" not in found["statistics"]
    first, second = found["notes"]
    assert first.startswith("base: no KL to the teacher") and second.startswith("student: no perp")


def test_a_teacher_that_is_elsewhere_gives_its_text_and_no_distribution(folder, tmp_path):
    asked = stage(folder, tmp_path)
    found = likelihood(asked.arguments(), folders(folder, "base"), SILENT)
    assert found["perplexity_of"] == "teacher" and [*found["statistics"]] == ["base"]
    values = found["statistics"]["base"]
    assert values["kl_to_teacher"] == {}
    ids = [*ids_of(folder, WORDS[1]), END]
    nats = -logprobs(folder, "base", 1, ids)[range(len(ids)), ids].sum()
    assert values["perplexity"]["q1"] == [pytest.approx(float(nats), rel=1e-4), len(ids)]


def test_an_answer_longer_than_the_model_takes_is_left_out(folder, tmp_path):
    asked = stage(
        folder, tmp_path, ["7", "8 " * 80 + "\n#### 8", "9", "10", "11", "4 and 8\n#### 12"]
    )
    found = likelihood(asked.arguments(), folders(folder, "base"), SILENT)
    assert {*found["statistics"]["base"]["perplexity"]} == {
        "q5"
    }  # the others are too long, or bare


def test_two_measurements_are_equal_to_the_last_bit(folder, tmp_path):
    asked = stage(folder, tmp_path)
    first, again = (
        likelihood(asked.arguments(), folders(folder, "teacher", "base"), SILENT) for _ in range(2)
    )
    assert first == again
