"""curate: every response is kept or rejected with one reason, and nothing is asked twice."""

import asyncio
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models

from retort import context, preflight
from retort.context import Stage
from retort.curate import curate
from retort.curate.asking import judging, score_of
from retort.errors import DataError, SpecError, StageError
from retort.events import SILENT
from retort.items import Item
from retort.records import Example, Response, write_lines
from retort.spec import Judge, build
from retort.storage import open_store
from retort.task_types import load
from tests.misbehaving import SECRET, bad, endpoint
from tests.stages import job, num_files, segments
from tests.tiny import save_model, write_rows

THOUGHT = "One and one are two.\nAnswer: 2"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What names a model, for the engine that needs none."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return str(folder)


def asked(name, split="train", expected="2", question="1 + 1 = ?", **more) -> Example:
    return Example(name, split, [{"role": "user", "content": question}], expected, **more)


def said(example, text, state="accepted", sample=0, turn=0, **more) -> Response:
    name = f"{example}#{sample}.{turn}" if sample or turn else example
    tokens = list(text.encode())
    return Response(
        name, text, tokens, "stop", 5, len(tokens), "", state,
        example_id=example, sample=sample, turn=turn, **more,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Curates examples and responses as artifacts of a store; returns facts and decisions."""

    def curated(examples, responses, filters=("finished", "verified"), generate=(), **knobs):
        sections = {
            "prepare": {"train": "x.jsonl", "test": "x.jsonl", **knobs.pop("prepare", {})},
            "generate": {"teacher": "t", "top_k": 0, **dict(generate)},
            "curate": {"filters": list(filters), **knobs},
        }
        spec = build({"name": "j", "train": {"student": "s"}, **sections})
        store = open_store(tmp_path / "store")
        prepared, generated, out = (store.artifact(s, "a") for s in ("prepare", "generate", "out"))
        for folder in (prepared, generated, out):
            folder.clear()
        for split in ("train", "validation"):
            rows = [e for e in examples if e.split == split]
            prepared.write(f"{split}-00000.jsonl", write_lines(rows))
        for at in range(0, len(responses), 3):
            generated.write(f"responses-{at:05}.jsonl", write_lines(responses[at : at + 3]))
        inputs = {s: store.artifact(s, "a").commit({"facts": {}}) for s in ("prepare", "generate")}
        stage = Stage("curate", spec, store, inputs, out, SILENT, tmp_path / "log")
        facts = curate(stage)
        return facts, context.read_decisions(out)

    return curated


def why(decisions) -> dict[str, str | None]:
    return {name: d.reason and f"{d.filter}: {d.reason}" for name, d in decisions.items()}


def test_kept_and_rejected_are_all_responses_and_the_first_reason_wins(run):
    random.seed(0)
    names = ["finished", "non_empty", "answered", "verified", "unique", "majority", "best_of_n"]
    for n in range(4):
        examples = [asked(f"e{i}", random.choice(["train", "validation"])) for i in range(9)]
        examples[0] = asked("e0")
        responses = [
            said(e.id, random.choice(["2", "3", " ", "x"]), state, sample=sample)
            for e in examples
            for sample in range(3)
            for state in random.choices(["accepted", "truncated"], [5, 1])
        ]
        responses[0] = said("e0", "2")
        chosen = random.sample(names, n % len(names) + 1)
        chosen = [{"name": c, "at_least": 1} if c == "majority" else c for c in chosen]
        facts, decisions = run(examples, responses, chosen, min_kept=1)
        assert list(decisions) == [r.id for r in responses]
        assert facts["num_kept"] + facts["num_rejected"] == facts["num_responses"] == 27
        assert facts["num_kept"] == sum(d.kept for d in decisions.values())
        assert Counter(facts["reasons"]) == Counter(r for r in why(decisions).values() if r)
        for response in responses:
            if response.state == "truncated" and "finished" in chosen[:1]:
                assert decisions[response.id].filter == "finished"


def test_without_filters_the_task_types_own_are_asked(run):
    examples = [asked("a"), asked("b"), asked("c", "validation")]
    responses = [said("a", "2"), said("b", "2", "truncated"), said("c", "it is 2")]
    facts, decisions = run(examples, responses, ())
    assert why(decisions) == {"a": None, "b": "finished: truncated", "c": None}
    assert (facts["num_kept"], facts["num_kept_train"]) == (2, 1)
    assert "verified" in facts["filters"]


def test_the_budget_of_a_summary_is_the_one_it_was_written_for(run):
    budget = {"prepare": {"max_summary_words": 5}}
    responses = [said("a", "one two three four five six"), said("b", "one two three")]
    examples = [asked("a"), asked("b")]
    _, decisions = run(examples, responses, ["summary_length"], **budget)
    assert why(decisions) == {"a": "summary_length: more than 5 words", "b": None}
    own = [{"name": "summary_length", "max_words": 6}]
    assert run(examples, responses, own, **budget)[0]["num_kept"] == 2


def test_peers_are_the_answers_of_the_same_turn_that_still_stand(run):
    chat = [{"role": "user", "content": "again"}]
    responses = [
        said("a", "5", "truncated"),
        said("a", "2", sample=1),
        said("a", "2", turn=1, messages=chat),
        said("a", "5", sample=2),
        said("b", "5"),
    ]
    chosen = ["finished", "unique", {"name": "majority", "at_least": 1}]
    _, decisions = run([asked("a"), asked("b")], responses, chosen)
    assert why(decisions) == {
        "a": "finished: truncated",
        "a#1.0": None,
        "a#0.1": None,
        "a#2.0": "majority: not the answer of the majority",
        "b": None,
    }


def test_one_reasoning_that_cannot_be_read_rejects_one_row_alone(run):
    texts = [
        '{"reasoning": "1 + 1", "answer": "2"}',
        '{"reasoning": "1 + 1, "answer": 2',
        THOUGHT,
        '{"reasoning": "1 + 1", "answer": "3"}',
    ]
    examples = [asked(name) for name in "abcde"]
    responses = [said(name, text) for name, text in zip("abcd", texts, strict=True)]
    responses.append(said("e", "One and one", "truncated"))
    facts, decisions = run(
        examples,
        responses,
        ["non_empty", "finished", "verified"],
        {"reasoning": "chain_of_thought"},
    )
    assert why(decisions) == {
        "a": None,
        "b": "rationale: no answer found after the reasoning",
        "c": None,
        "d": "verified: wrong answer",
        "e": "finished: truncated",
    }
    assert facts["num_kept"] == 2


@pytest.mark.parametrize(
    ("style", "lesson", "rationale"),
    [
        ("keep", None, None),
        ("drop", "2", None),
        ("field", "2", "One and one are two."),
        ("think", "<think>\nOne and one are two.\n</think>\n\n2", None),
    ],
)
def test_the_reasoning_is_kept_dropped_set_beside_or_thought(run, style, lesson, rationale):
    texts = {"a": THOUGHT, "b": "2", "c": "<think>One and one", "d": "<think>It is 3.</think>2"}
    examples = [asked(name) for name in texts]
    responses = [said(name, text) for name, text in texts.items()]
    _, decisions = run(examples, responses, ["verified"], rationale=style)
    one = decisions["a"]
    assert (one.kept, one.lesson, one.rationale) == (True, lesson, rationale)
    assert (decisions["b"].kept, decisions["b"].lesson) == (True, None)
    assert not decisions["c"].kept
    assert decisions["c"].lesson is None
    assert decisions["d"].kept


def test_a_filter_looks_at_the_answer_and_not_at_the_thoughts_before_it(run):
    text = "<think>I'm sorry, but I can't assist with that. Or can I?</think>It is 2."
    few = [{"name": "length", "max_words": 3}, "not_refused"]
    assert run([asked("a")], [said("a", text)], few)[0]["num_kept"] == 1


def test_answers_outside_the_label_set_are_rejected(run):
    labels = {"entailment": "", "neutral": "", "contradiction": ""}
    texts = ["neutral", "perhaps", "Entailment."]
    examples = [
        asked(str(i), expected=None, options=labels, question="p, h") for i in range(len(texts))
    ]
    responses = [said(str(i), text) for i, text in enumerate(texts)]
    _, decisions = run(examples, responses, ["label_in_set"], prepare={"task_type": "nli"})
    assert [d.kept for d in decisions.values()] == [True, False, True]


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("none", [1, 1, 1, 1]), ("oversample", [1, 1, 1, 3]), ("weights", [2 / 3, 2 / 3, 2 / 3, 2])],
)
def test_kept_train_rows_of_a_rare_label_weigh_more(run, mode, weights):
    expected = ["2", "2", "2", "2", "7"]
    examples = [asked(f"e{i}", expected=right) for i, right in enumerate(expected)]
    examples.append(asked("v", "validation", expected="7"))
    responses = [said(e.id, e.expected) for e in examples]
    responses[0] = said("e0", "8")
    facts, decisions = run(examples, responses, prepare={"balance": {"by": "label"}}, balance=mode)
    assert [decisions[f"e{i}"].weight for i in range(1, 5)] == pytest.approx(weights)
    assert (decisions["e0"].weight, decisions["v"].weight) == (1, 1)
    assert facts["balance_before"] == {"2": 4, "7": 1}
    assert facts["balance_after"] == {"2": 3, "7": 1}


def test_too_few_kept_rows_stop_the_job_and_it_says_why(run):
    examples = [asked("a"), asked("b"), asked("v", "validation")]
    responses = [said("a", "3"), said("b", "2"), said("v", "2")]
    with pytest.raises(DataError, match=r"kept 1 train .*min_kept=2; rejected: 1 verified: wrong"):
        run(examples, responses, min_kept=2)


def test_what_does_not_belong_together_is_refused(run):
    with pytest.raises(DataError, match="do not match by id"):
        run([asked("a"), asked("b")], [said("a", "2")])
    with pytest.raises(DataError, match="do not match by id"):
        run([asked("a")], [said("a", "2"), said("b", "2")])
    with pytest.raises(SpecError, match="did you mean 'max_words'"):
        run([asked("a")], [said("a", "2")], [{"name": "length", "max_wrods": 3}])


def test_a_judge_is_asked_once_about_what_stands_and_a_threshold_asks_nothing(run, model, tmp_path):
    texts = {"a": "It is 2. Score: 5", "b": "2. Score: 2", "c": "2", "d": "2. Score: 4", "e": "x"}
    examples = [asked(name) for name in [*texts, "f"]]
    responses = [said(name, text) for name, text in texts.items()]
    responses[3] = said("d", texts["d"], "truncated")
    responses.append(said("f", texts["a"]))
    store = str(tmp_path / "store")
    who = {"model": model, "engine": "echo", "max_tokens": 4000}

    def judged(least, *more, **knobs):
        chosen = ["finished", "non_empty", {"name": "judged", "min_score": least}, *more]
        return run(examples, responses, chosen, judge={**who, **knobs})[1]

    decisions = judged(3)
    none, cut = "judged: the judge gave no score", "finished: truncated"
    low = "judged: scored below 3"
    assert why(decisions) == {"a": None, "b": low, "c": none, "d": cut, "e": none, "f": None}
    assert [decisions[name].score for name in "abcdef"] == [5, 2, None, None, None, 5]
    # d was cut off before the judge's turn, and f asks the judge what a does.
    assert len(segments(store)) == 4
    files = num_files(store)
    assert why(judged(2))["b"] is None
    assert why(judged(2, "answered"))["b"] is None
    assert why(judged(2, {"name": "length", "min_tokens": 12}))["b"].startswith("length")
    assert num_files(store) == files
    judged(3, rubric="Is it short?")
    assert len(segments(store)) == 8


def test_the_best_of_n_is_what_the_judge_liked_best(run, model):
    texts = ["Score: 3\n#### 2", "Score: 5, surely\n#### 2", "Score: 5\n#### 7", "2"]
    responses = [said("a", text, sample=sample) for sample, text in enumerate(texts)]
    judge = {"model": model, "engine": "echo", "max_tokens": 4000}
    _, decisions = run([asked("a")], responses, ["judged", "best_of_n"], judge=judge)
    assert [d.kept for d in decisions.values()] == [False, True, False, False]
    assert [d.filter for d in decisions.values() if not d.kept] == ["best_of_n"] * 2 + ["judged"]


def test_two_teachers_must_agree_and_the_second_sees_what_the_first_saw(run, model, tmp_path):
    chat = [{"role": "user", "content": "And 2 + 5 = 7, so?"}]
    examples = [asked("a", question="Say 4"), asked("b", question="Say 5"), asked("c")]
    responses = [
        said("a", "It is 4."),
        said("a", "7", turn=1, messages=chat),
        said("b", "6"),
        said("c", "2", "truncated"),
    ]
    who = {"second_teacher": {"model": model, "engine": "echo"}}
    chosen = ["finished", "teachers_agree"]
    _, decisions = run(examples, responses, chosen, **who)
    assert why(decisions) == {
        "a": None,
        "a#0.1": None,
        "b": "teachers_agree: the teachers disagree",
        "c": "finished: truncated",
    }
    seen = [entry["raw"]["text"] for entry in segments(str(tmp_path / "store"))]
    assert sorted(seen) == ["And 2 + 5 = 7, so?", "Say 4", "Say 5"]


def test_what_failed_is_asked_again_and_what_a_broken_run_got_stands(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    questions = ["1", "2", "3", "fails", "denied"]
    examples = [asked(q, question=q) for q in questions]
    responses = [said(q, f"to {q}") for q in questions]
    broken = {"fails", "denied"}

    async def behave(seen, request, text):
        if text in broken and text == "denied":
            await asyncio.sleep(0.5)
            return bad(401)
        return bad(400) if text in broken else None

    with endpoint(behave) as (seen, url):
        who = {"model": "tiny", "engine": "openai", "endpoint": url}

        def agreed():
            knobs = {"second_teacher": who, "prepare": {"task_type": "qa"}}
            return run(examples, responses, ["teachers_agree"], **knobs)[1]

        with pytest.raises(StageError, match="401"):
            agreed()
        broken.remove("denied")
        assert why(agreed())["fails"] == "teachers_agree: the second teacher gave no answer"
        broken.remove("fails")
        for _ in range(2):
            assert all(d.kept for d in agreed().values())
        assert [seen.times(q) for q in questions] == [1, 1, 1, 3, 2]


def test_an_answer_of_the_judge_that_was_cut_off_is_no_score_and_asked_again_with_more_room(
    run, model, tmp_path
):
    examples, responses = [asked("a", expected=None)], [said("a", "2. Score: 4")]

    def judged(max_tokens):
        who = {"model": model, "engine": "echo", "max_tokens": max_tokens}
        return run(examples, responses, ["non_empty", "judged"], judge=who)[1]["a"]

    with pytest.raises(DataError, match="the judge gave no score"):
        judged(20)
    assert judged(4000).score == 4
    assert len(segments(str(tmp_path / "store"))) == 2


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\nScore: 4", 4),
        ("Score: 2 at first, but no.\n**Score:** 4.5/5", 4.5),
        ('{"score": 3, "why": "short"}', 3),
        ("score is **5**.", 5),
        ("Score (1 to 5): 2", 2),
        ("Final score = 1 out of 5", 1),
        ("Score: 8/10", None),
        ("Score: 4/10", None),
        ("Score: 0", None),
        ("Score: 1-5", None),
        ("Score: N", None),
        ("scored 4 goals", None),
        ("", None),
    ],
)
def test_the_last_score_from_one_to_five_counts(text, score):
    assert score_of(text) == score


def test_a_judge_sees_the_rubric_the_chat_and_the_answer_and_no_score_to_repeat():
    example = Example("a", "train", [{"role": "system", "content": "Be kind."}])
    item = Item(example, said("a", "x"), load("qa"), "the answer")
    (turn,) = judging("Is it short?", item)
    assert all(part in turn["content"] for part in ("Is it short?", "Be kind.", "the answer"))
    assert score_of(turn["content"]) is None


@pytest.mark.parametrize("who", ["judge", "second_teacher"])
def test_a_further_model_that_cannot_be_asked_is_said_before_a_run(who, tmp_path):
    spec = build(
        job(save_model(tmp_path / "model"), write_rows(tmp_path / "t.jsonl", 4, 0), "echo")
    )
    nowhere = {"model": "x", "engine": "openai", "endpoint": "ftp://host"}
    for asked, said in ((nowhere, "http"), ({"model": str(tmp_path / "none")}, f"curate.{who}")):
        curate_knobs = spec.curate.model_copy(update={who: Judge(**asked)})
        wrong = spec.model_copy(update={"curate": curate_knobs})
        with pytest.raises(SpecError, match=said):
            preflight.check(wrong, open_store(str(tmp_path / "store")))
