"""curate with a judge or a second teacher: nothing is asked twice, and no score is made up."""

import asyncio
from functools import partial

import pytest
from aiohttp import web
from tokenizers import Tokenizer, models

from retort.errors import DataError, SpecError, StageError
from retort.jobs import preflight
from retort.records import Example
from retort.spec import Judge, build
from retort.stages.judge import judging_chat, score_of
from retort.store import open_store
from tests.support.curating import asked, curated, said, why
from tests.support.misbehaving import SECRET, bad, endpoint, openai_body
from tests.support.stages import job, num_files, segments
from tests.support.tiny import save_model, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What names a model, for the engine that needs none."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """Curates examples and responses in a store of its own; returns facts and decisions."""
    return partial(curated, tmp_path)


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


def test_a_judge_that_could_not_be_reached_is_counted_and_asked_again_about_the_rest(
    run, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    examples = [asked(name) for name in "abcd"]
    responses = [said(name, f"2, says {name}") for name in "abcd"]
    away = {"a": 503, "c": 400, "d": 500}

    async def behave(seen, request, text):
        for name, status in away.items():
            if f"says {name}" in text:
                return bad(status)
        return web.json_response(openai_body("Score: 5"))

    with endpoint(behave) as (seen, url):
        who = {"model": "tiny", "engine": "openai", "endpoint": url}
        who["runtime"] = {"max_attempts": 1}

        def judged():
            return run(examples, responses, ["judged"], judge=who)

        facts, decisions = judged()
        assert facts["num_unreached"] == 2  # what is refused would be refused again
        assert [name for name, decision in decisions.items() if decision.kept] == ["b"]
        del away["a"], away["d"]
        facts, decisions = judged()
        assert facts["num_unreached"] == 0
        assert [name for name, decision in decisions.items() if decision.kept] == ["a", "b", "d"]
        times = {n: sum(f"says {n}" in text for _, text in seen.seen) for n in "abcd"}
        assert times == {"a": 2, "b": 1, "c": 2, "d": 2}


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
    (turn,) = judging_chat("Is it short?", example.messages, "the answer")
    assert all(part in turn["content"] for part in ("Is it short?", "Be kind.", "the answer"))
    assert score_of(turn["content"]) is None


@pytest.mark.parametrize("who", ["judge", "second_teacher"])
def test_a_further_model_that_cannot_be_asked_is_said_before_a_run(who, tmp_path):
    spec = build(
        job(save_model(tmp_path / "model"), write_rows(tmp_path / "t.jsonl", 4, 0), "echo")
    )
    nowhere = {"model": "x", "engine": "openai", "endpoint": "ftp://host"}
    none = {"model": str(tmp_path / "none")}
    for model, reason in ((nowhere, "http"), (none, f"curate.{who}")):
        curate_knobs = spec.curate.model_copy(update={who: Judge(**model)})
        wrong = spec.model_copy(update={"curate": curate_knobs})
        with pytest.raises(SpecError, match=reason):
            preflight.check(wrong, open_store(str(tmp_path / "store")))
