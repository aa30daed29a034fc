"""The data card: its numbers against a recount from the files, its picture against its texts."""

import itertools
import random
import re
import statistics
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import orjson
import pytest
from pydantic import TypeAdapter

from retort.data.balance import largest
from retort.events import SILENT
from retort.records import Decision, Example, Response, write_lines
from retort.spec import build
from retort.stages.curate import data_card
from retort.stages.curate.data_card import DataCard
from retort.stages.stage import Stage
from retort.store import Store

LABELS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
FACTS = {
    "num_rows": {"train": 330, "validation": 50, "test": 20},
    "num_quarantined": 9,
    "num_duplicates": 12,
    "num_near_duplicates": 7,
    "num_contaminated": 3,
    "num_left_out": 79,
    "num_examples": {"train": 220, "validation": 50, "test": 20},
    "recognised": {"nli": 390, "messages": 10},
    "quarantine_reasons": {"not JSON": 5, "no user turn": 2},
}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


def stage_of(tmp_path, facts, examples, responses, **knobs) -> Stage:
    """A stage curate whose inputs are these, in several files each, as the stages before write."""
    sections = {"generate": {"teacher": "t"}, "train": {"student": "s"}}
    prepare = {"task_type": "qa", "train": "train.jsonl", "test": "test.jsonl", **knobs}
    spec, store = build({"name": "card", "prepare": prepare, **sections}), Store(str(tmp_path))
    prepared, generated = store.artifact("prepare", "p"), store.artifact("generate", "g")
    for split in ("train", "validation"):
        rows = [example for example in examples if example.split == split]
        for start in range(0, len(rows), 100):
            prepared.write(f"{split}-{start:05d}.jsonl", write_lines(rows[start : start + 100]))
    for start in range(0, len(responses), 64):
        name = f"responses-{start:05d}.jsonl"
        generated.write(name, write_lines(responses[start : start + 64]))
    inputs = {"prepare": prepared.commit({"facts": facts}), "generate": generated.commit({})}
    out = store.artifact("curate", "c")
    return Stage("curate", spec, store, inputs, out, SILENT, tmp_path / "log")


def job(tmp_path, num_samples=1, weights=(1.0, 1.0), counts_tokens=True, rewritten=False, **knobs):
    """A job of 220 train and 50 validation examples; a sixth of the responses is rejected."""
    chance = random.Random(3)
    examples, responses, decisions = [], [], []
    for number in range(270):
        label = chance.choice(["entailment", "entailment", "neutral", "contradiction"])
        text = " ".join(["word"] * chance.randint(3, 90))
        split = "train" if number < 220 else "validation"
        examples.append(Example(f"e{number}", split, chat(text), label, options=LABELS))
        for sample in range(num_samples):
            name, answer = f"e{number}.{sample}", " ".join(["so"] * chance.randint(1, 200))
            state = "truncated" if chance.random() < 0.05 else "accepted"
            tokens = (chance.randint(5, 99), chance.randint(1, 400)) if counts_tokens else (0, 0)
            why = "finished" if state != "accepted" else chance.choice([*["kept"] * 6, "verified"])
            told = {"state": state, "example_id": f"e{number}"}
            responses.append(Response(name, answer, [], "stop", *tokens, **told))
            decisions.append(
                Decision(
                    name, True, weight=chance.choice(weights), target_text="a b" * rewritten or None
                )
                if why == "kept"
                else Decision(name, False, why, f"wrong | {state}")
            )
    stage = stage_of(tmp_path, FACTS, examples, responses, **knobs)
    chance.shuffle(decisions)
    return stage, examples, responses, decisions


def card_of(tmp_path, questions: list[str], kept: list[bool], **knobs) -> dict:
    """The card of questions without labels or anything that prepare told."""
    names = [f"e{number}" for number in range(len(questions))]
    pairs = zip(names, questions, strict=True)
    examples = [Example(name, "train", chat(text)) for name, text in pairs]
    responses = [Response(name, "x", [], "stop", 7, 3, example_id=name) for name in names]
    decisions = [Decision(name, keep, "f", "r") for name, keep in zip(names, kept, strict=True)]
    return written(stage_of(tmp_path, {}, examples, responses, **knobs), decisions)


def written(stage: Stage, decisions: list[Decision]) -> dict:
    """The card that curate writes, as JSON."""
    card = data_card.write(stage, decisions)
    found = stage.out.read_json("data_card.json")
    assert read(found) == card
    return found


def read(made: dict) -> DataCard:
    return TypeAdapter(DataCard).validate_python(made)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job with weights, and its card."""
    stage, examples, responses, decisions = job(tmp_path_factory.mktemp("job"), weights=(0.5, 2.0))
    return stage, examples, responses, decisions, written(stage, decisions)


def rows_of(folder, prefix: str) -> list[dict]:
    """The rows of an artifact's files, read with nothing of ours."""
    names = [name for name in folder.files() if name.startswith(prefix)]
    return [orjson.loads(line) for name in names for line in folder.read(name).splitlines()]


def texts_of(picture: bytes) -> list[str]:
    """All lines of text in an SVG."""
    found = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in found]


def adds_up(made: dict) -> bool:
    steps = made["funnel"]
    pairs = itertools.pairwise(steps)
    return all(step["count"] == before["count"] - step["removed"] for before, step in pairs)


def test_the_funnel_adds_up_and_ends_with_what_is_learned_from(whole):
    stage, _, _, decisions, made = whole
    assert adds_up(made)
    kept = {decision.id for decision in decisions if decision.kept}
    asked = rows_of(stage.input("generate"), "responses-")
    train = {row["id"] for row in rows_of(stage.input("prepare"), "train-")}
    learned = [row for row in asked if row["id"] in kept and row["example_id"] in train]
    num_accepted = sum(row["state"] == "accepted" for row in asked)
    counts = {step["step"]: step["count"] for step in made["funnel"]}
    before = [400, 391, 379, 372, 369, 290, 270]
    assert list(counts.values()) == [*before, num_accepted, len(kept), len(learned)]
    assert " ".join(counts) == (
        "rows in quarantined exact duplicates near duplicates contaminated left out "
        "examples asked responses accepted kept learned from"
    )
    assert made["funnel"][6]["why"] == "test rows, set apart for the comparison"
    assert made["splits"]["kept"] == {"train": len(learned), "validation": len(kept) - len(learned)}


def test_reasons_are_counted_and_those_that_prepare_does_not_name_too(whole):
    *_, decisions, made = whole
    reasons = made["reasons"]
    slow = Counter(f"{d.filter}: {d.reason}" for d in decisions if not d.kept)
    assert reasons["rejected"] == dict(slow.most_common())
    assert reasons["quarantined"] == {"not JSON": 5, "no user turn": 2, "(others)": 2}
    few = largest({"(others)": 1, "b": 2, "a": 2, "c": 3}, 2)
    assert list(few.items()) == [("c", 3), ("a", 2), ("(others)", 3)]


def test_balance_before_after_and_weighted_is_a_recount_of_the_files(whole):
    stage, _, _, decisions, made = whole
    train = {row["id"]: row["expected"] for row in rows_of(stage.input("prepare"), "train-")}
    groups = {
        row["id"]: train[row["example_id"]]
        for row in rows_of(stage.input("generate"), "responses-")
        if row["example_id"] in train
    }
    kept = [d for d in decisions if d.kept and d.id in groups]
    weighted = {
        label: sum(d.weight for d in kept if groups[d.id] == label) for label in train.values()
    }
    assert made["balance"]["by"] == "label"
    assert made["balance"]["before"] == Counter(train.values())
    assert made["balance"]["after"] == Counter(groups[d.id] for d in kept)
    assert made["balance"]["weighted"] == pytest.approx(weighted)


def test_lengths_are_those_of_the_responses_to_train_examples(whole):
    _, examples, responses, decisions, card_of_it = whole
    made = card_of_it["lengths"]
    train = {example.id for example in examples if example.split == "train"}
    kept = {decision.id for decision in decisions if decision.kept}
    mine = [r for r in responses if r.example_id in train]
    for what, length in (("prompts", "num_prompt_tokens"), ("answers", "num_tokens")):
        assert made[what]["unit"] == "tokens"
        for when, rows in (("before", mine), ("after", [r for r in mine if r.id in kept])):
            values, found = [getattr(row, length) for row in rows], made[what][when]
            assert found["num"] == sum(found["counts"]) == len(values)
            assert (found["min"], found["max"]) == (min(values), max(values))
            assert found["median"] == statistics.median(values)
            edges = made[what]["edges"]
            bins = itertools.pairwise(edges)
            slow = [sum(low <= value < high for value in values) for low, high in bins]
            assert found["counts"] == slow
            assert 10 <= len(slow) <= 30


@pytest.mark.parametrize("counts", [True, False])
def test_without_tokens_or_with_lessons_of_their_own_lengths_are_in_words(tmp_path, counts):
    stage, examples, responses, decisions = job(tmp_path, counts_tokens=counts, rewritten=True)
    made = written(stage, decisions)["lengths"]
    assert (made["prompts"]["unit"] == "tokens", made["answers"]["unit"]) == (counts, "words")
    words = [2 + len(e.messages[1]["content"].split()) for e in examples if e.split == "train"]
    assert counts or made["prompts"]["before"]["median"] == statistics.median(words)
    answers = [len(r.text.split()) for r in responses[:220]]
    assert made["answers"]["before"]["max"] == max(answers)
    assert (made["answers"]["after"]["min"], made["answers"]["after"]["max"]) == (2, 2)


def test_one_endless_answer_does_not_hide_the_others(tmp_path):
    _, examples, responses, decisions = job(tmp_path)
    responses[0] = replace(responses[0], num_tokens=100_000)
    stage = stage_of(tmp_path / "other", FACTS, examples, responses)
    found = written(stage, decisions)["lengths"]["answers"]
    assert found["edges"][-1] == 100_001
    assert max(found["before"]["counts"]) < 20
    assert found["before"]["counts"][-1] < 5


def test_several_responses_to_an_example_are_a_step_that_adds(tmp_path):
    stage, _, _, decisions = job(tmp_path, num_samples=3)
    made = written(stage, decisions)
    assert adds_up(made)
    step = next(step for step in made["funnel"] if step["step"] == "responses")
    assert list(step.values()) == ["responses", 810, -540, "3 to an example on average"]
    assert "+540" in texts_of(data_card.picture(read(made)))


def test_without_labels_prompts_are_clustered_and_both_sides_are_the_same_clusters(tmp_path):
    topics = ("apples pears plums cherries figs", "engines wheels brakes gears pistons")
    chance = random.Random(0)
    texts = [" ".join(chance.choices(topics[n % 2].split(), k=8)) for n in range(120)]
    kept = [bool(n % 2) for n in range(120)]
    found = card_of(tmp_path, texts, kept, balance={"num_clusters": 2})["balance"]
    assert (found["by"], found["num_sampled"]) == ("cluster", None)
    assert sorted(found["before"].values()) == [60, 60]
    assert sorted(found["after"].values()) == [0, 60]
    (learned,) = [name for name, count in found["after"].items() if count]
    assert set(learned.removeprefix("cluster: ").split()) <= set(topics[1].split())


def test_of_many_unlabelled_prompts_a_sample_is_clustered(tmp_path, monkeypatch):
    monkeypatch.setattr("retort.stages.curate.data_card.counts.MOST_CLUSTERED", 100)
    made = card_of(tmp_path, ["one two", "three four"] * 125, [True] * 250)
    found = made["balance"]
    assert found["num_sampled"] == sum(found["before"].values()) == 84
    assert found["before"] == found["after"]
    assert made["funnel"][0]["count"] == made["funnel"][-1]["count"] == 250


def test_the_picture_and_the_page_hold_the_cards_texts_and_numbers(whole):
    stage, _, _, _, made = whole
    texts, page = texts_of(stage.out.read("data_card.svg")), stage.out.read("data_card.md").decode()
    shown = " ".join(re.sub(r"<[^>]+>", " ", stage.out.read("data_card.html").decode()).split())
    assert texts == texts_of(data_card.picture(read(made)))
    for step in made["funnel"]:
        assert step["step"] in texts
        assert f"{step['count']:,}" in texts
        assert f"{step['step']} {step['count']:,}" in shown
        assert re.search(rf"\| {step['step']} \| {step['count']:,} \|", page)
    for reason, count in made["reasons"]["rejected"].items():
        assert {reason, f"{count:,}"} <= set(texts)
        assert f"{reason} {count:,}" in shown
        assert f"| {reason.replace('|', chr(92) + '|')} | answer rejected | {count} |" in page
    total = sum(made["balance"]["before"].values())
    for label, count in made["balance"]["before"].items():
        assert {label, f"{count / total:.1%}"} <= set(texts)
        after = made["balance"]["after"][label]
        assert f"{label} {count:,} → {after:,} {count / total:.1%} →" in shown
        assert f"| {label} | {count} ({count / total:.1%}) |" in page
    assert {"as weighted", "Prompts, in tokens", "Answers, in tokens"} <= set(texts)
    assert page.startswith("## Data\n\n400 rows in")


def test_a_card_is_the_same_bytes_each_time(whole):
    stage, _, _, decisions, made = whole
    names = ("data_card.svg", "data_card.md", "data_card.html")
    first = [stage.out.read(name) for name in names]
    assert written(stage, decisions[::-1]) == made
    assert [stage.out.read(name) for name in names] == first


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_job_of_no_row_or_of_one_has_a_card_too(tmp_path, num_rows):
    made = card_of(tmp_path, ["why"] * num_rows, [True] * num_rows)
    assert adds_up(made)
    assert made["funnel"][-1]["count"] == num_rows
    texts = texts_of(data_card.picture(read(made)))
    assert "Nothing was rejected and no row was bad." in texts
    assert ("There are no train examples." in texts) == (num_rows == 0)
    assert data_card.as_markdown(read(made)).count("\n| learned from |") == 1


def test_facts_that_do_not_add_up_are_shown_and_not_hidden(tmp_path):
    _, examples, responses, decisions = job(tmp_path)
    facts = {**FACTS, "num_left_out": 70}
    made = written(stage_of(tmp_path / "other", facts, examples, responses), decisions)
    assert adds_up(made)
    step = next(step for step in made["funnel"] if step["step"] == "not accounted for")
    assert (step["count"], step["removed"]) == (290, 9)
    assert "not accounted for" in data_card.as_markdown(read(made))


def test_long_odd_and_foreign_names_stay_one_line_within_their_panel(whole):
    *_, whole_card = whole
    balance = {**whole_card["balance"], "weighted": {}}
    made = {**whole_card, "balance": balance}
    odd = {"filter: $x^2$ <b>&\n\x00\ud800 " + "long " * 60: 5, "filter: 理由" * 20: 4, "ü": 3}
    made["reasons"] = {"rejected": odd, "quarantined": {f"r{n}": 1 for n in range(30)}}
    made["balance"]["before"] = made["balance"]["after"] = {"x" * n: 1 for n in range(50, 90)}
    texts = texts_of(data_card.picture(read(made)))
    assert any(text.startswith("filter: $x^2$ <b>& long long") for text in texts)
    assert sum(text.endswith("…") for text in texts) == 12
    assert max(len(text) for text in texts) <= 90
    assert {"and 23 more reasons, 23 in all", "and 30 more groups"} <= set(texts)
    page = data_card.as_markdown(read(made))
    assert "<b>" not in page and "<b>&" not in data_card.as_html(read(made))
    assert all(len(re.findall(r"(?<!\\)\|", x)) in (0, 4, 5, 6, 7) for x in page.splitlines())
