"""Rows in: each becomes an example, is kept with the reason why not, or stops the job."""

import base64
import json
from pathlib import Path

import pytest

from retort.data.filters.candidate import Candidate
from retort.data.task_types import qa
from retort.errors import DataError, SpecError
from retort.events import Reporter
from retort.records import Quarantined, Removed, Response, read_lines
from retort.spec import build
from retort.stages.prepare import prepare
from retort.stages.prepare.check import check
from retort.stages.prepare.rows import preview
from retort.stages.stage import read_examples
from tests.support.real_data import AZURE, needs_azure
from tests.support.stages import stage_of
from tests.support.tiny import save_model

GOOD = b'{"question": "1 + 1 = ?", "answer": "2"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), hidden=32, layers=1)


@pytest.fixture
def prepared(tmp_path, model):
    """Prepares a job whose train file holds the given lines, with one test row."""

    def run(*lines: bytes, test=b'{"id": "t", "question": "0 + 0 = ?", "answer": "0"}', **knobs):
        (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        section = {"train": str(tmp_path / "train.jsonl")}
        if test is not None:
            (tmp_path / "test.jsonl").write_bytes(test + b"\n")
            section["test"] = str(tmp_path / "test.jsonl")
        notes: list[str] = []

        def listen(event):
            if event["kind"] == "note":
                notes.append(event["text"])

        raw = {
            "name": "j",
            "prepare": {**section, **knobs},
            "generate": {"teacher": str(model), "engine": "transformers"},
            "train": {"student": str(model)},
        }
        stage = stage_of("prepare", raw, str(tmp_path / "store"), {}, Reporter(listen))
        stage.out.clear()
        facts = prepare(stage)
        return Prepared(stage, facts, notes)

    return run


class Prepared:
    def __init__(self, stage, facts, notes):
        self.stage, self.facts, self.notes = stage, facts, notes

    def examples(self, split="train"):
        return read_examples(self.stage.out, split)

    def records(self, shape, name):
        out = self.stage.out
        return read_lines(shape, out.read(name)) if out.has(name) else []

    @property
    def quarantined(self):
        return self.records(Quarantined, "quarantine.jsonl")

    @property
    def removed(self):
        return self.records(Removed, "removed.jsonl")


def chat(*turns, **more) -> bytes:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]
    return json.dumps({"messages": messages, **more}).encode()


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
        (chat("u:1", "u:2"), "roles out of order"),
        (b'{"question": "  "}', "empty"),
        (b'{"topic": "x"}', "no known columns"),
        (b'{"question": "x", "answer": "none"}', "holds no number"),
        (b'{"question": "' + b"x" * 2000 + b'"}', "prepare.max_row_bytes=1000"),
        (b'{"id": "a", "question": "3 + 3 = ?", "metadata": {"n": 1e999}}', "not JSON"),
    ],
)
def test_a_bad_row_is_kept_with_file_line_reason_and_bytes_and_nothing_after_it_is_lost(
    prepared, line, reason
):
    done = prepared(GOOD, line, b'{"question": "2 + 2 = ?"}', max_bad_ratio=0.5, max_row_bytes=1000)
    (bad,) = done.quarantined
    assert (Path(bad.file).name, bad.line) == ("train.jsonl", 2)
    assert reason in bad.reason
    raw = base64.b64decode(bad.raw) if bad.encoding == "base64" else bad.raw.encode()
    assert line.startswith(raw) and raw
    assert len(done.examples()) == 2
    assert done.facts["num_rows"] == {"train": 3, "test": 1}
    assert done.facts["num_quarantined"] == 1


def test_all_that_came_with_a_row_travels_with_it(prepared):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = chat("s:Be brief.", "u:2 + 3", "a:5", id=7, metadata={"topic": "sums"}, tools=[tool])
    (example,) = prepared(row).examples()
    assert example.id == "7"
    assert example.messages[0] == {"role": "system", "content": "Be brief."}
    assert (example.expected, example.reference) == ("5", "5")
    assert (example.metadata, example.tools) == ({"topic": "sums"}, [tool])


def test_an_id_is_the_users_own_or_the_contents_hash(prepared):
    hashed, own = prepared(GOOD, b'{"id": 7, "question": "2 + 5"}').examples()
    assert own.id == "7"
    assert len(hashed.id) == 16
    assert prepared(GOOD).examples()[0].id == hashed.id


def test_every_right_answer_of_a_row_travels_with_it_and_is_right(prepared):
    row = {"question": "Who wrote it?", "answers": {"text": ["Ada Lovelace", "The Countess"]}}
    (example,) = prepared(json.dumps(row).encode(), task_type="qa").examples()
    assert example.answers == ["ada lovelace", "countess"]
    right = {
        text: Candidate(example, Response("a", text, [], "stop", 0, 0), qa, text).is_right
        for text in ("Ada Lovelace", "a countess", "Lovelace")
    }
    assert right == {"Ada Lovelace": True, "a countess": True, "Lovelace": False}


def test_an_id_used_twice_is_bad_in_one_file_and_told_apart_between_files(prepared):
    done = prepared(
        b'{"id": "t", "question": "1 + 1 = ?"}',
        b'{"id": "u", "question": "2 + 7 = ?"}',
        b'{"id": "u", "question": "5 + 6 = ?"}',
        max_bad_ratio=0.5,
    )
    assert [e.id for e in done.examples()] == ["train/t", "u"]
    assert [e.id for e in done.examples("test")] == ["t"]
    assert "an id used twice in prepare.train: u" in done.quarantined[0].reason


def test_a_copy_is_removed_and_says_of_which_row(prepared):
    done = prepared(GOOD, b'{"question": "1 + 1  =  ?", "answer": "2"}')
    assert len(done.examples()) == done.facts["num_duplicates"] == 1
    (copy,) = done.removed
    assert (copy.line, copy.reason, copy.similarity) == (2, "copy", 1.0)
    assert copy.other.endswith("train.jsonl:1")
    assert "1 + 1 = ?" in copy.other_text


def test_equal_questions_under_different_system_prompts_are_different_rows(prepared):
    done = prepared(chat("s:English.", "u:2 + 3"), chat("s:French.", "u:2 + 3"))
    assert len(done.examples()) == 2


SENTENCE = "the quick brown fox jumps over the lazy dog and runs into the deep dark wood"
WORDS = SENTENCE.split(" ")


def question(text: str) -> bytes:
    return json.dumps({"question": text}).encode()


def test_what_stands_in_the_test_file_is_not_learned_also_inside_a_longer_row(prepared):
    leak = " ".join(WORDS)
    longer = f"Please think hard about this one. {leak} What comes next after all of that?"
    others = [question(f"How many legs do {n} spiders and {n + 1} birds have?") for n in range(9)]
    done = prepared(question(longer), *others, test=question(leak), task_type="qa")
    assert done.facts["num_contaminated"] == 1
    assert done.facts["num_examples"] == {"train": 9, "test": 1}
    (removed,) = done.removed
    assert (removed.line, removed.reason) == (1, "leak of test")
    assert removed.other_text == leak
    without = prepared(
        question(longer), test=question(leak), task_type="qa", decontaminate={"enabled": False}
    )
    assert without.facts["num_contaminated"] == 0


def test_what_stands_in_any_named_file_is_not_learned(prepared, tmp_path):
    (tmp_path / "bench.csv").write_text("prompt_text,x\n" + " ".join(WORDS) + ",1\n")
    against = {"against": [str(tmp_path / "bench.csv")]}
    done = prepared(question(" ".join(WORDS)), GOOD, task_type="qa", decontaminate=against)
    assert [removed.reason for removed in done.removed] == ["leak of against"]
    assert done.removed[0].other.endswith("bench.csv:2")


TOWNS = [
    *("Oslo", "Lima", "Cairo", "Quito", "Accra", "Hanoi", "Minsk"),
    *("Sofia", "Tunis", "Dakar", "Bern", "Riga"),
]


def test_rows_are_compared_by_what_a_template_asks_of_them(prepared):
    lines = [
        json.dumps({"question": "Which river is the longest?", "town": town, "note": "x"}).encode()
        for town in [*TOWNS, TOWNS[0].upper()]
    ]
    test = b'{"question": "What is a zebra?", "town": "none"}'
    knobs = {"task_type": "qa", "template": "{question} Town: {town}"}
    done = prepared(*lines, test=test, **knobs)
    assert [pair.reason for pair in done.removed] == ["copy"]
    assert len(done.examples()) == len(TOWNS)
    done = prepared(*lines, task_type="qa")
    assert len(done.examples()) == 1


def test_a_short_question_about_a_long_text_tells_rows_apart_wherever_it_stands(prepared):
    text = " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(90))
    questions = ("Who paid for the mill?", "When was the mill built?", "When was the mill built")
    lines = [json.dumps({"question": q, "context": text}).encode() for q in questions]
    for template in ("{context}\n\n{question}", "{question}\n\n{context}"):
        test = b'{"question": "What is a zebra?", "context": "An animal."}'
        done = prepared(*lines, test=test, task_type="qa", template=template)
        assert [pair.reason for pair in done.removed] == ["copy"]


def test_a_premise_and_a_hypothesis_that_changed_places_are_no_copy(prepared):
    long = "A man in a blue shirt is standing on a ladder and cleaning a window of a shop"
    lines = [
        json.dumps({"premise": one, "hypothesis": two}).encode()
        for one, two in ((long, "He cleans"), ("He cleans", long), (long, "He  cleans."))
    ]
    test = b'{"premise": "zebra", "hypothesis": "animal"}'
    done = prepared(*lines, task_type="nli", test=test)
    assert [(pair.line, pair.reason) for pair in done.removed] == [(3, "copy")]


def test_rows_with_other_right_answers_are_neither_copies_nor_leaks(prepared):
    labels = ["refund", "delivery", "account"]
    rows = [
        ("Where can I see why my refund is late", "refund"),
        ("where can i see why my refund is late", "delivery"),
        ("Where can I see my refund", "account"),
        ("where can I see why my refund is late?", "refund"),
    ]
    lines = [json.dumps({"text": text, "label": label}).encode() for text, label in rows]
    test = json.dumps({"text": "where can I see my refund", "label": "refund"}).encode()
    done = prepared(*lines, test=test, task_type="nli", labels=labels)
    assert [(pair.line, pair.reason) for pair in done.removed] == [(4, "copy")]
    same = json.dumps({"text": "Where can I see my refund?", "label": "refund"}).encode()
    done = prepared(*lines, same, test=test, task_type="nli", labels=labels)
    assert [(pair.line, pair.reason) for pair in done.removed] == [(4, "copy"), (5, "leak of test")]


def test_another_summary_of_the_same_article_is_a_copy_and_a_leak(prepared):
    articles = [SENTENCE, SENTENCE, SENTENCE[::-1], "A zebra sleeps."]
    lines = [
        json.dumps({"article": article, "summary": summary}).encode()
        for article, summary in zip(articles, "abcd", strict=True)
    ]
    test = json.dumps({"article": SENTENCE[::-1], "summary": "e"}).encode()
    done = prepared(*lines, test=test, task_type="summarization")
    assert [pair.reason for pair in done.removed] == ["copy", "leak of test"]


def test_a_file_that_loses_many_rows_says_so_with_the_commonest_pairs_and_the_knobs(prepared):
    lines = [question(f"{town} has how many churches and museums?") for town in TOWNS]
    copies = [lines[0]] * 4 + [lines[1]] * 2 + [lines[n] for n in (2, 3, 4, 5)]
    leak = question(f"Please tell me: {SENTENCE}")
    done = prepared(*lines, *copies, leak, test=question(SENTENCE), task_type="qa")
    said = [note for note in done.notes if "prepare.train: " in note or " x " in note]
    assert "11 of 23 rows of" in said[0] and "(10 as copy, 1 as leak of test)" in said[0]
    assert "--set prepare.deduplicate.exact=false" in said[0]
    assert "--set prepare.decontaminate.enabled=false" in said[0]
    assert [note.split()[0] for note in said[1:]] == ["4", "2", "1", "1", "1"]
    assert "'Oslo has how many churches and museums?' is a copy of 'Oslo has" in said[1]
    few = prepared(*lines, lines[0], task_type="qa")
    assert not any("rows of" in note for note in few.notes)


def test_a_file_that_would_lose_many_rows_is_spoken_of_before_a_run(prepared):
    lines = [question(f"How large is {town}?") for town in TOWNS]
    spec = prepared(*lines, *lines, task_type="qa").stage.spec
    said = check(spec)
    assert any("12 of 24 rows of" in line and "deduplicate.exact=false" in line for line in said)


def test_labels_that_cannot_be_told_apart_stop_the_job(prepared):
    with pytest.raises(SpecError, match=r"'no' and 'No\.' are the same label"):
        prepared(question("x"), task_type="nli", labels=["no", "No."])


def test_rows_set_apart_by_hash_stay_where_they_are_when_rows_are_added(prepared):
    lines = [question(f"What is {n} times {n * n}?") for n in range(300)]
    knobs = {"test": None, "validation_ratio": 0.1, "test_ratio": 0.1, "task_type": "qa"}
    splits = ("train", "validation", "test")
    few = prepared(*lines[:200], **knobs)
    before = {split: {e.id for e in few.examples(split)} for split in splits}
    many = prepared(*lines, **knobs)
    after = {split: {e.id for e in many.examples(split)} for split in splits}
    assert all(before[split] <= after[split] for split in before)
    assert 10 < len(after["test"]) < 55 and 10 < len(after["validation"]) < 55
    assert sum(map(len, after.values())) == 300


def test_a_limit_keeps_each_groups_share(prepared):
    lines = [
        json.dumps({"question": f"{n} + {n}?", "metadata": {"kind": "ab"[n % 4 == 0]}}).encode()
        for n in range(80)
    ]
    done = prepared(*lines, limit=20, balance={"by": "metadata.kind"})
    kinds = [e.metadata["kind"] for e in done.examples()]
    assert (kinds.count("a"), kinds.count("b")) == (15, 5)
    assert done.facts["num_left_out"] == 60
    assert done.facts["balance"] == {"a": 15, "b": 5}
    capped = prepared(*lines, balance={"by": "metadata.kind", "cap": 10})
    assert capped.facts["balance"] == {"a": 10, "b": 10}


def test_clusters_are_found_and_capped(prepared):
    topics = ("How many apples does the farmer sell", "When does the night train leave for")
    lines = [question(f"{topic} {place}?") for topic in topics for place in "abcdefghijklmnopqrst"]
    knobs = {"by": "cluster", "num_clusters": 2, "cap": 5}
    done = prepared(*lines, task_type="qa", balance=knobs, deduplicate={"near": False})
    assert sorted(done.facts["balance"].values()) == [5, 5]
    assert all(name.startswith("cluster: ") for name in done.facts["balance"])
    asked = [e.messages[0]["content"] for e in done.examples()]
    assert [sum(topic in text for text in asked) for topic in topics] == [5, 5]


def test_personal_data_is_scrubbed_everywhere_in_a_row(prepared):
    row = chat(
        "s:I am bob@example.com", "u:Write to ann@example.org", "a:Ask ok@example.com.\n#### 7"
    )
    done = prepared(row, scrub=["emails"])
    assert "example" not in json.dumps([vars(e) for e in done.examples()])
    assert done.facts["num_scrubbed"] == 1


def test_a_system_prompt_is_added_only_where_there_is_none(prepared):
    own = chat("s:mine", "u:1 and 7")
    examples = prepared(GOOD, own, system_prompt="ours").examples()
    assert [example.messages[0]["content"] for example in examples] == ["ours", "mine"]


def test_what_was_recognised_and_what_became_of_the_rows_is_said(prepared):
    done = prepared(GOOD, GOOD, chat("u:2 + 8"))
    assert done.facts["recognised"] == {"question_answer": 3, "messages": 1}
    assert any("3 question_answer, 1 messages; 1 copies" in note for note in done.notes)


def test_too_many_bad_rows_stop_the_job_and_name_the_first(prepared):
    with pytest.raises(DataError, match=r"2 of 4 rows are bad.*train\.jsonl:2"):
        prepared(GOOD, b"no", b"no")


def test_a_split_without_usable_rows_stops_the_job(prepared):
    with pytest.raises(DataError, match="no usable row"):
        prepared(b"", max_bad_ratio=1)


def test_a_ratio_that_sets_no_row_apart_is_told_to_be_raised(prepared):
    with pytest.raises(DataError, match=r"prepare\.validation_ratio: 0\.001 of 2 rows"):
        prepared(GOOD, validation_ratio=0.001)


def test_a_train_file_that_is_the_test_file_stops_the_job(prepared):
    with pytest.raises(DataError, match="no row is left"):
        prepared(GOOD, test=GOOD)


def test_there_must_be_something_to_compare_on(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    spec = build(
        {
            "name": "j",
            "prepare": {"train": str(tmp_path / "train.jsonl")},
            "generate": {"teacher": "t"},
            "train": {"student": "s"},
        }
    )
    with pytest.raises(SpecError, match=r"prepare\.test: missing"):
        preview(spec, 100)


@needs_azure
@pytest.mark.parametrize("task", ["nli", "math"])
def test_every_real_row_is_read(prepared, task):
    folder = AZURE / task
    train, validation = (
        (folder / f"{name}_{task}.jsonl").read_bytes() for name in ("train", "validation")
    )
    done = prepared(*train.splitlines(), test=validation, task_type=task)
    num_rows = sum(bool(line.strip()) for line in [*train.splitlines(), *validation.splitlines()])
    facts = done.facts
    gone = ("num_duplicates", "num_near_duplicates", "num_contaminated")
    assert num_rows > 400
    assert facts["num_quarantined"] == 0
    assert sum(facts["num_examples"].values()) + sum(facts[name] for name in gone) == num_rows
    assert sum(facts[name] for name in gone) < 0.1 * num_rows
