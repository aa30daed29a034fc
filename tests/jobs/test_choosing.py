"""Rows that a student chooses from a pool: which may be, which are, and that a teacher never is
asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.cli import main
from retort.errors import DataError, SpecError
from retort.events import SILENT
from retort.jobs.choosing import Choice, ChooseRequest, beside, choose
from retort.spec import load
from retort.stages.curate import curate
from retort.stages.generate.capture import capture
from retort.stages.prepare import prepare
from retort.stages.stage import Stage
from retort.stages.teacher_requests import ledger_name, request_context
from retort.store import Artifact, Folder, Store, open_store
from tests.support.source_rows import jsonl
from tests.support.stages import segments as answered
from tests.support.stages import stage_of
from tests.support.tiny import save_model, write_job

ENGINES = ("generate.engine=echo", "generate.top_k=0", "generate.max_tokens=12")
LOSSES = ('train.losses=[{"name": "cross_entropy"}]', "evaluate.engine=transformers")
JOB = (*ENGINES, *LOSSES)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def question(number: int) -> dict[str, str]:
    return {"question": f"{300 + number} + {number % 7} = ?", "note": f"row {number}"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A job with its rows, its teacher's answers and a student, and a pool of forty rows."""
    home = tmp_path_factory.mktemp("choosing")
    spec = load(write_job(home, "transformers"), list(JOB))[0]
    made: dict[str, Artifact] = {}
    for name, function in (("prepare", prepare), ("generate", captured), ("curate", curate)):
        stage = stage_of(name, spec.model_dump(mode="json"), str(home / "store"), made)
        made[name] = stage.out.commit({"facts": function(stage)})
    train = stage_of("train", spec.model_dump(mode="json"), str(home / "store"), made)
    train.out.put_tree(save_model(home / "student", 32, 1, seed=7), "student")
    train.out.commit({"facts": {}})
    (home / "pool.jsonl").write_bytes(jsonl(question(n) for n in range(40)))
    return home


def captured(stage: Stage) -> dict:
    return capture(stage.arguments(), "test", 16, SILENT)


@pytest.fixture
def store(home) -> Store:
    return open_store(str(home / "store"))


def segments(store: Store) -> set[str]:
    """The files with answers in all ledgers."""
    names = Folder(f"{store.uri}/ledger").files()
    return {name for name in names if name.endswith(".jsonl")}


def choosing(
    home: Path, store: Store, out: str = "chosen.jsonl", knobs: tuple[str, ...] = JOB, **own
) -> Choice:
    request = ChooseRequest(**{"number": 5, "pool": str(home / "pool.jsonl"), **own})
    spec = load(home / "job.yaml", list(knobs))[0]
    return choose(spec, store, request, home / out, SILENT)


@torch.inference_mode()
def uncertainty(folder: Path, text: str) -> float:
    """The mean entropy of a model's distributions along its greedy answer, token after token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    found: list[float] = []
    while len(found) < 12 and (not found or ids[-1] != tokenizer.eos_token_id):
        chances = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        top = chances.topk(8).values
        parts = torch.cat([top, (1 - top.sum()).clamp(min=1e-12)[None]])
        found.append(float(-(parts * parts.log()).sum()))
        ids = [*ids, int(chances.argmax())]
    return float(np.mean(found))


def test_the_student_s_uncertainty_is_that_of_its_own_greedy_answers(home, store):
    found = choosing(home, store, number=40)
    assert (found.num_rows, found.num_looked_at, found.left_out) == (40, 40, {})
    rows = {row["note"]: row["question"] for row in lines(home / "chosen.jsonl")}
    assert len(rows) == 40
    by_line = {each.line: each.uncertainty for each in found.chosen}
    for number in (0, 7, 31):
        expected = uncertainty(home / "student", question(number)["question"])
        assert by_line[number + 1] == pytest.approx(expected, rel=0.02)


def test_chosen_rows_are_as_they_were_in_the_pool_with_their_reasons_beside(home, store):
    found = choosing(home, store, number=6)
    pool = (home / "pool.jsonl").read_bytes().splitlines()
    chosen = (home / "chosen.jsonl").read_bytes().splitlines()
    assert len(set(chosen)) == 6 and chosen == [pool[each.line - 1] for each in found.chosen]
    why = lines(beside(home / "chosen.jsonl", "why"))
    assert [each["line"] for each in why] == [each.line for each in found.chosen]
    assert all(each["worth"] > 0 and each["uncertainty"] > 0 for each in why)
    # The teacher echoes, which no student of ours can: it is wrong everywhere, in all kinds.
    assert {round(each["disagreement"], 6) for each in why} == {1.0}
    assert sum(kind.num_chosen for kind in found.kinds) == 6
    assert sum(kind.num_rows for kind in found.kinds) == 40
    assert sum(kind.num_answered for kind in found.kinds) == 48
    assert sum(kind.by_chance for kind in found.kinds) == pytest.approx(6)


def test_a_choice_is_the_same_again_and_its_answers_are_not_asked_for_twice(home, store):
    first = choosing(home, store, number=6)
    before = segments(store)
    again = choosing(home, store, "again.jsonl", number=6)
    assert again == first
    assert (home / "again.jsonl").read_bytes() == (home / "chosen.jsonl").read_bytes()
    assert segments(store) == before
    # Rows that were asked in another pool are not asked again: the ledger keeps them.
    (home / "less.jsonl").write_bytes(jsonl(question(n) for n in range(5, 30)))
    choosing(home, store, pool=str(home / "less.jsonl"))
    assert segments(store) == before
    drawn = [choosing(home, store, by="random", seed=seed).chosen for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(each.worth is None and each.uncertainty is None for each in drawn[0])


def test_only_new_rows_are_asked_and_the_teacher_is_asked_nothing(home, store):
    teacher = ledger_name(request_context(load(home / "job.yaml", list(JOB))[0]))
    choosing(home, store)
    before, num_before = segments(store), len(answered(store.uri))
    rows = [*(question(n) for n in range(100, 112)), *(question(n) for n in range(20))]
    (home / "other.jsonl").write_bytes(jsonl(rows))
    choosing(home, store, pool=str(home / "other.jsonl"), number=3)
    assert len(answered(store.uri)) == num_before + 12
    assert not any(name.startswith(teacher) for name in segments(store) - before)


def test_bad_rows_copies_and_rows_of_the_job_are_left_out_with_their_reasons(home, store):
    own = {split: lines(home / f"data/{split}.jsonl") for split in ("train", "validation", "test")}
    rows = [
        *(question(n) for n in range(200, 206)),
        question(200),
        {"question": own["train"][3]["question"]},
        {"question": own["validation"][1]["question"]},
        {"question": own["test"][2]["question"].replace(" =", "  =")},
        {"question": "What is 900 + 1?", "id": "train-5"},
        {"answer": "7"},
        {"question": ["1 + 1"]},
    ]
    path = home / "mixed.jsonl"
    path.write_bytes(jsonl(rows) + b"{not json\n\xff\xfe\n[1]\n")
    found = choosing(home, store, pool=str(path), number=6)
    assert {each.line for each in found.chosen} == set(range(1, 7))
    assert found.num_rows == 16 and sum(found.left_out.values()) == 10
    assert found.left_out["copy"] == 1
    assert found.left_out["copy of a row that is answered"] == 1
    assert found.left_out["leak of validation"] == found.left_out["leak of test"] == 1
    assert found.left_out["an id that a row of the job has"] == 1
    assert sum(n for reason, n in found.left_out.items() if reason.startswith("bad: ")) == 5
    records = {each["line"]: each for each in lines(beside(home / "chosen.jsonl", "left-out"))}
    assert sorted(records) == list(range(7, 17))
    assert records[7]["other"].endswith("mixed.jsonl:1")
    assert records[10]["reason"] == "leak of test" and records[10]["other"].endswith("test.jsonl:3")
    assert records[14]["raw"] == "{not json" and "JSON" in records[14]["reason"]
    with pytest.raises(DataError, match=r"--choose 7: 6 of the 16 rows .*1 leak of test"):
        choosing(home, store, pool=str(path), number=7)


def test_copies_are_left_out_even_where_the_job_keeps_them(home, store):
    path = home / "twice.jsonl"
    path.write_bytes(jsonl([question(1), question(1), question(2)]))
    keeps = (*JOB, "prepare.deduplicate.exact=false", "prepare.deduplicate.near=false")
    found = choosing(home, store, pool=str(path), number=2, by="random", knobs=keeps)
    assert found.left_out == {"copy": 1}


def test_what_the_ledger_has_an_answer_to_is_not_chosen(home, store):
    """Another job with the same teacher has paid for two of the pool's rows."""
    path = home / "paid.jsonl"
    path.write_bytes(jsonl(question(n) for n in range(60, 68)))
    other = home / "other-train.jsonl"
    other.write_bytes(jsonl([question(62), question(66)]))
    spec = load(home / "job.yaml", [*JOB, f"prepare.train={other}"])[0]
    made: dict[str, Artifact] = {}
    for name, function in (("prepare", prepare), ("generate", captured)):
        stage = stage_of(name, spec.model_dump(mode="json"), store.uri, made)
        made[name] = stage.out.commit({"facts": function(stage)})
    found = choosing(home, store, pool=str(path), number=6)
    assert {each.line for each in found.chosen} == {1, 2, 4, 5, 6, 8}
    assert found.left_out == {"answered: the ledger has the teacher's answer already": 2}


def test_rows_that_the_job_would_hold_out_are_not_chosen(home, store):
    ratio = (*JOB, "prepare.test=null", "prepare.test_ratio=0.5")
    found = choosing(home, store, number=3, by="random", knobs=ratio)
    assert 5 < found.left_out["held out by the job's ratios"] < 35
    with pytest.raises(SpecError, match=r"tiny: no student was trained .* `retort run`"):
        choosing(home, store, number=3, knobs=ratio)


def test_without_distributions_only_disagreement_counts(home, store):
    echo = [knob for knob in JOB if not knob.startswith("evaluate.engine")]
    found = choosing(home, store, number=4, knobs=(*echo, "evaluate.engine=echo"))
    assert found.notes == ("the student's engine gives no distributions: only disagreement counts",)
    assert {each.disagreement for each in found.chosen} == {0.0}  # an echo echoes an echo


def run(capsys, home: Path, *words: str) -> tuple[int, str, str]:
    knobs = [word for knob in JOB for word in ("--set", knob)]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "plan",
                str(home / "job.yaml"),
                "--store",
                str(home / "store"),
                *knobs,
                *map(str, words),
            ]
        )
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_writes_the_rows_and_says_what_was_chosen(home, store, capsys):
    out = home / "by" / "command.jsonl"
    flags = ("--choose", "4", "--pool", str(home / "pool.jsonl"), "--out", str(out))
    code, printed, err = run(capsys, home, *flags)
    assert code == 0, err
    assert f"4 of 40 rows chosen by the student, 40 looked at: {out}" in printed
    table = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└"]
    assert "by chance" in table[1] and max(map(len, table)) <= 80
    assert len(lines(out)) == len(lines(beside(out, "why"))) == 4
    code, printed, _ = run(capsys, home, *flags, "--json", "--seed", "3", "--by", "random")
    found = json.loads(printed)
    assert (found["by"], found["seed"], len(found["chosen"])) == ("random", 3, 4)
    # What was chosen is ready as train rows of the job.
    again = load(home / "job.yaml", [*JOB, f"prepare.train={out}"])[0]
    stage = stage_of("prepare", again.model_dump(mode="json"), str(home / "another"), {})
    assert prepare(stage)["num_examples"]["train"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--choose", "3"), "--choose: needs --pool FILE"),
        (("--pool", "pool.jsonl"), "--pool: needs --choose N"),
        (("--choose", "0", "--pool", "pool.jsonl"), "--choose 0: choose 1 row or more"),
        (("--choose", "9", "--pool", "pool.jsonl", "--ask", "5"), "--ask 5: look at as many rows"),
        (("--choose", "3", "--pool", "pool.jsonl", "--out", "pool.jsonl"), "is the pool itself"),
        (("--choose", "3", "--pool", "models/base/model.safetensors"), "--pool: "),
        (("--choose", "3", "--pool", "none.jsonl"), "--pool none.jsonl: there is no such file"),
        (("--choose", "41", "--pool", "pool.jsonl"), "--choose 41: 40 of the 40 rows of the pool"),
        (
            ("--choose", "3", "--pool", "pool.jsonl", "--set", "train.seed=9"),
            "tiny: no student was trained from these rows and knobs",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(home, capsys, monkeypatch, words, message):
    monkeypatch.chdir(home)
    code, _, err = run(capsys, home, *words)
    assert code == 2 and message in err, err
