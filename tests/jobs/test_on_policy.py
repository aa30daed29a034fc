"""On-policy rounds as a job runs them: durable, the same after any kill, continued by more."""

import multiprocessing
import signal

import pytest

from retort.spec import rounds
from retort.store import Folder, InputFolder
from tests.support.rounds import ROUNDS, train, train_and_die, write


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    return write(folder), train(folder / "job.yaml", folder / "store"), folder / "store"


def facts(artifact):
    return InputFolder(artifact.uri).read_manifest()["facts"]


def num_lines(store):
    ledgers = Folder(f"{store}/ledger")
    names = [name for name in ledgers.files() if name.endswith(".jsonl")]
    lines = [(n.split("/")[0], line) for n in names for line in ledgers.read(n).splitlines()]
    return sorted((n, line.split(b'"key":"')[1][:32]) for n, line in lines if b'"key":"' in line)


def test_each_round_has_answers_scores_and_a_student_of_its_own(undisturbed):
    _, made, _ = undisturbed
    assert [name for name in made if name.startswith(rounds.PARTS) or "train" in name] == [
        *("train-offline", "rollouts-001", "scores-001", "round-001", "rollouts-002"),
        *("scores-002", "train", "train-offline_steps", "train-offline_cost"),
    ]
    records = facts(made["train"])["rounds"]
    assert [record["round"] for record in records] == [1, 2]
    assert all(record["num"] == ROUNDS["prompts"] and record["kept"] for record in records)
    assert all(record["loss_after"] != record["loss_before"] for record in records)
    # 8 answers in batches of 8 are one step a round.
    assert facts(made["train-offline_steps"])["num_steps"] == 2
    assert facts(made["train-offline_cost"])["num_steps"] > 2
    students = {made[name].digest for name in ("train-offline", "round-001", "train")}
    assert len(students) == 3


def test_the_student_is_the_same_after_a_kill_in_each_part(undisturbed, tmp_path):
    _, made, store = undisturbed
    path = write(tmp_path / "job", controls=())
    context = multiprocessing.get_context("spawn")
    moments = (
        ("rollouts-001", "progress"),
        ("scores-002", "progress"),
        ("train", "metrics"),
    )
    for moment in moments:
        child = context.Process(target=train_and_die, args=(path, tmp_path / "store", moment))
        child.start()
        child.join(300)
        assert child.exitcode == -signal.SIGKILL, moment
    again = train(path, tmp_path / "store")
    for name in ("train-offline", "round-001", "train"):
        weights = [
            InputFolder(each[name].uri).read("student/model.safetensors") for each in (made, again)
        ]
        assert weights[0] == weights[1], name
    keys = num_lines(tmp_path / "store")
    assert keys == num_lines(store) and len(set(keys)) == len(keys)


def test_more_rounds_go_on_from_those_that_are_there(undisturbed, tmp_path):
    path, made, store = undisturbed
    seen = []
    # The step size falls in the second half, so the first of two rounds is that of four.
    overrides = ("train.on_policy.rounds=4", "train.controls=[]")
    more = train(path, store, overrides, lambda stage, event: seen.append((stage, event["kind"])))
    assert {stage for stage, kind in seen if kind == "cached"} >= {"train-offline", "round-001"}
    assert more["round-001"] == made["round-001"] and more["train"] != made["train"]
    assert len(facts(more["train"])["rounds"]) == 4


def test_the_phase_before_is_the_training_of_a_job_without_rounds(undisturbed):
    path, made, store = undisturbed
    plain = train(path, store, ("train.on_policy=null", "train.controls=[]"))
    assert plain["train"] == made["train-offline"]


def test_a_round_that_makes_held_out_answers_worse_is_not_kept(undisturbed, tmp_path):
    path, made, store = undisturbed
    wild = ("train.on_policy.learning_rate=5.0", "train.on_policy.max_rise=0.0")
    found = train(path, store, (*wild, "train.controls=[]"))
    records = facts(found["train"])["rounds"]
    assert [record["kept"] for record in records] == [0, 0]
    weights = [
        InputFolder(each.uri).read("student/model.safetensors")
        for each in (found["train"], made["train-offline"])
    ]
    assert weights[0] == weights[1]


def test_the_rounds_end_where_answers_are_cut_off(undisturbed):
    path, made, store = undisturbed
    short = ("train.on_policy.max_tokens=1", "train.on_policy.max_truncated=0.5")
    found = train(path, store, (*short, "train.controls=[]"))
    last = facts(found["train"])
    assert "cut off" in last["ended"] and len(last["rounds"]) == 1
    student = InputFolder(found["train"].uri).read("student/model.safetensors")
    assert student == InputFolder(made["train-offline"].uri).read("student/model.safetensors")


def test_rounds_of_adapters_with_several_answers_and_stored_rows_go_on_in_a_bucket(
    undisturbed, s3_here, tmp_path
):
    path, _, _ = undisturbed
    overrides = (
        "train.controls=[offline_steps]",
        "train.lora={rank: 2}",
        "train.on_policy.n=2",
        "train.on_policy.share=0.5",
    )
    store, seen = f"s3://retort/rounds-{tmp_path.name}", []
    made = train(path, store, overrides)
    first, last = facts(made["train"])["rounds"]
    assert first["num"] == last["num"] == 2 * ROUNDS["prompts"]
    # As many stored rows as answers: 32 rows in batches of 8, in each round.
    assert (first["num_steps"], last["last_step"]) == (4, 8)
    assert facts(made["train-offline_steps"])["num_steps"] == 8
    names = {name.rsplit("/")[-1] for name in Folder(made["round-001"].uri).files()}
    assert "state.safetensors" not in names and "model.safetensors" in names
    more = ("train.on_policy.rounds=4", *overrides, "train.controls=[]")
    train(path, store, more, lambda stage, event: seen.append((stage, event["kind"])))
    assert ("round-001", "cached") in seen and ("round-003", "done") in seen


def test_a_whole_run_shows_its_rounds_and_what_they_gained(undisturbed, retort, tmp_path):
    path, _, store = undisturbed
    shown = retort("run", path, "--store", store)
    assert shown.returncode in (0, 3), shown.stderr
    assert "round-001: cached" in shown.stderr and "evaluate: done" in shown.stderr
    report = Folder(f"{store}/jobs/tiny")
    content = report.read_json("report.json")
    assert [each["round"] for each in content["training"]["rounds"]] == [1, 2]
    assert {"offline_steps", "offline_cost"} <= content["comparison"]["differences"].keys()
    text = report.read("report.md").decode()
    assert "## Rounds" in text and "learning on from stored rows" in text
    # Ended in its first round, of three: the others are not made.
    short = ("--set", "train.on_policy.max_tokens=2", "--set", "train.on_policy.max_truncated=0.5")
    more = ("--set", "train.on_policy.rounds=3", "--set", "train.controls=[]")
    ended = retort("run", path, "--store", store, *short, *more)
    assert ended.returncode in (0, 3), ended.stderr
    assert "the rounds end here" in ended.stderr and "round-002" not in ended.stderr
    assert len(report.read_json("report.json")["training"]["rounds"]) == 1
