"""Rows in: every row becomes an example or is kept with its reason. Answers are read as values."""

import json
from pathlib import Path

import pytest

from retort import filters
from retort.curate import judge
from retort.errors import DataError, SpecError
from retort.prepare import check_counts, read_rows
from retort.records import Example, Response
from retort.registry import find_file
from retort.spec import build
from retort.task_types import conversation, math, qa

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def spec_for(train: Path, **prepare):
    sections = {"prepare": {"train": str(train), "test": str(train.parent / "test.jsonl")}}
    sections["prepare"] |= prepare
    return build({"name": "j", "generate": {"teacher": "t"}, "train": {"student": "s"}, **sections})


@pytest.fixture
def rows(tmp_path):
    """Writes lines and reads them as the train split of a job with one test row."""
    (tmp_path / "test.jsonl").write_text('{"id": "t", "question": "0 + 0 = ?", "answer": "0"}\n')

    def read(*lines: bytes, **prepare):
        (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        spec = spec_for(tmp_path / "train.jsonl", **prepare)
        return spec, read_rows(spec)

    return read


GOOD = b'{"question": "1 + 1 = ?", "answer": "2"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b'{"question": "\xff"}', "not UTF-8"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "no user turn"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot'"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "text content"),
        (b'{"messages": []}', "at least one turn"),
        (b'{"question": "  "}', "empty"),
        (b'{"prompt": "x"}', "no messages and no question"),
        (b'{"question": "x", "answer": "none"}', "holds no number"),
    ],
)
def test_a_bad_row_is_kept_with_file_line_and_reason_and_nothing_after_it_is_lost(
    rows, line, reason
):
    _, (examples, quarantined, read) = rows(GOOD, line, b'{"question": "2 + 2 = ?"}')
    (bad,) = quarantined
    assert (Path(bad.file).name, bad.line) == ("train.jsonl", 2)
    assert reason in bad.reason
    assert bad.raw == line.decode(errors="replace")
    assert len(examples["train"]) == 2
    assert read["train"] == 3


def test_an_id_used_twice_is_bad_also_across_files_and_a_copy_is_only_set_aside(rows):
    _, (_, quarantined, _) = rows(b'{"id": "t", "question": "1 + 1 = ?"}', GOOD, GOOD)
    copy, used_again = quarantined
    assert (copy.line, copy.bad) == (3, False)
    assert "a copy of" in copy.reason
    assert "train.jsonl:2" in copy.reason
    assert (Path(used_again.file).name, used_again.bad) == ("test.jsonl", True)
    assert "already used in" in used_again.reason


def test_an_id_is_the_users_own_or_the_contents_hash(rows):
    _, (examples, _, _) = rows(GOOD, b'{"id": 7, "question": "2"}')
    hashed, own = examples["train"]
    assert own.id == "7"
    assert len(hashed.id) == 16
    assert rows(GOOD)[1][0]["train"][0].id == hashed.id


def test_a_system_prompt_is_added_only_where_there_is_none(rows):
    own = b'{"messages": [{"role": "system", "content": "mine"}, {"role": "user", "content": "1"}]}'
    _, (examples, _, _) = rows(GOOD, own, system_prompt="ours")
    first = [example.messages[0]["content"] for example in examples["train"]]
    assert first == ["ours", "mine"]


def test_too_many_bad_rows_stop_the_job_and_name_the_first(rows):
    spec, read = rows(GOOD, b"no", b"no")
    with pytest.raises(DataError, match=r"2 of 4 rows are bad.*train\.jsonl:2"):
        check_counts(spec, *read)


def test_a_split_without_usable_rows_stops_the_job(rows):
    spec, read = rows(b"", max_bad_ratio=1)
    with pytest.raises(DataError, match="no usable row"):
        check_counts(spec, *read)


def test_there_must_be_something_to_compare_on(rows):
    spec, read = rows(GOOD, test=None)
    with pytest.raises(SpecError, match=r"prepare\.test: missing"):
        check_counts(spec, *read)


@pytest.mark.parametrize(
    "text",
    [
        "1234",
        "1,234",
        "$1234.00",
        "1234.0",
        r"\boxed{1234}",
        "the answer is 1234 dollars.",
        "#### 1,234",
    ],
)
def test_a_number_counts_as_a_value_however_it_is_written(text):
    assert math.equal(math.answer(text), "1234")


def test_the_number_after_the_marker_wins_over_later_ones():
    assert math.answer("1 + 2 = 3\n#### 3 which is 4 less than 7") == "3"
    assert math.answer("no number") is None
    assert math.equal("1/2", "0.5")
    assert not math.equal("3", "4")


def test_other_task_types_read_and_compare_text():
    assert qa.equal(qa.answer("The  Eiffel Tower."), "eiffel tower")
    chat, expected = conversation.prompt({"messages": [{"role": "user", "content": "hi"}]})
    assert (chat[0]["content"], expected) == ("hi", None)


def test_the_verifier_agrees_with_gsm8ks_own_rule_on_every_row():
    path = SHARED / "gsm8k/test_200.jsonl"
    if not path.exists():
        pytest.skip("the data is not here")
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    for text in answers:
        assert math.answer(text) == text.split("####")[1].strip().replace(",", "")


@pytest.mark.parametrize("task", ["nli", "math"])
def test_every_real_row_is_read(task):
    folder = SHARED / "azure" / task
    if not folder.exists():
        pytest.skip("the data is not here")
    spec = spec_for(
        folder / f"train_{task}.jsonl",
        test=str(folder / f"validation_{task}.jsonl"),
        task_type="conversation" if task == "nli" else "math",
    )
    examples, quarantined, _ = read_rows(spec)
    files = [folder / f"{name}_{task}.jsonl" for name in ("train", "validation")]
    num_rows = sum(bool(line.strip()) for path in files for line in path.read_text().splitlines())
    assert num_rows > 400
    assert len(examples["train"]) + len(examples["test"]) + len(quarantined) == num_rows
    assert not any(row.bad for row in quarantined)


def decide(text: str, state: str = "accepted", expected: str | None = "2", names=None):
    example = Example("a", "train", [{"role": "user", "content": "1 + 1"}], expected)
    response = Response("a", text, [1], "stop", 1, 1, state=state)
    chosen = [(n, getattr(filters, n)) for n in names or ("finished", "non_empty", "verified")]
    return judge(example, response, math, chosen)


def test_each_rejection_has_its_reason_and_the_first_filter_wins():
    assert decide("2").kept
    assert decide("x", expected=None).kept
    cut = decide("3", "truncated")
    assert (cut.filter, cut.reason) == ("finished", "truncated")
    assert decide(" ").filter == "non_empty"
    assert decide("3").reason == "wrong answer"
    assert decide("x").reason == "no answer found"
    assert decide("3", "truncated", names=("verified", "finished")).filter == "verified"


def test_plug_ins_from_outside_are_found_by_module_and_name():
    import retort.task_types

    assert find_file("task type", "math", retort.task_types) is math
    assert find_file("task type", "retort.task_types:qa", retort.task_types) is qa
    with pytest.raises(SpecError, match="cannot be loaded"):
        find_file("task type", "nowhere.at:all", retort.task_types)
