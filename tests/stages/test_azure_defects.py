"""Twelve things that the service behind the Azure ML job file gets wrong, each right here.

One job file, its rows and a teacher that misbehaves by row; the tests look at what became of them.
Those that need an endpoint each (6, 10, 11) stand in test_azure_endpoint.py; the twelfth, that
nothing is evaluated, resumed or priced, is shown in test_azure_samples.py.
"""

import json
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from aiohttp import web

from flows.cli import main
from retort.jobs.inspection import quarantined
from retort.records import Decision, Example, Response
from retort.spec import build
from retort.stages.stage import read_decisions, read_examples, read_responses
from retort.store import open_store
from tests.support.azure_rows import EASY, completion, make, row, spec_of, write_job
from tests.support.misbehaving import Endpoint, endpoint
from tests.support.stages import stage_of
from tests.support.tiny import save_model

ANSWERS = {"be kind": "entailment", "be rude": "contradiction"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
# The last row is what counts: all before it that is bad must not keep it out.
BAD_LINES = [b"", b"{}", b"not json", b'{"messages": [{"role": "user", "content": "\xff"}]}']

ROWS = [
    row("same: Premise: Rain falls on the old harbour. Hypothesis: It is wet."),
    row("same: Premise: Rain falls on the old harbour. Hypothesis: It is wet.", "be rude"),
    row("unparseable: Premise: A choir sings in June. Hypothesis: Somebody sings."),
    row("object: Premise: Two dogs chase one red ball. Hypothesis: Cats sleep."),
    row("cut: Premise: Nobody has opened this letter. Hypothesis: It is sealed."),
    row("outside: Premise: The bakery closes at seven. Hypothesis: Bread is cheap."),
    row(
        "whole: Premise: She planted eleven apple trees. Hypothesis: There are trees.",
        id="mine-1",
        metadata={"source": "a book", "page": 7},
        tools=TOOLS,
        replies=[{"role": "assistant", "content": "entailment"}],
    ),
]
LAST = row("last: Premise: The train to Oslo left late. Hypothesis: It left.", id="last")


async def misbehaves(seen: Endpoint, request: web.Request, text: str) -> web.Response:
    """Answers as the first word of the question says, by the label of its system prompt."""
    kind, messages = text.partition(":")[0], seen.bodies[-1]["messages"]
    label = ANSWERS[messages[0]["content"]]
    said = {
        "unparseable": '{"reasoning": "because it sings, "answer": entail',
        "object": json.dumps({"reasoning": "Dogs are no cats.", "answer": label}),
        "cut": "I begin to reason and",
        "outside": "It is hard to say.\nAnswer: maybe",
    }.get(kind, f"I compare them.\nAnswer: {label}")
    reason = "length" if kind == "cut" else "stop"
    return completion(said, reason)


@dataclass(frozen=True)
class Made:
    """What became of the job: what its teacher was asked, and by the first word of the question."""

    raw: dict[str, Any]
    store: str
    seen: Endpoint
    examples: dict[str, list[Example]]
    responses: dict[str, Response]
    decisions: dict[str, Decision]
    words: list[str]

    def decision(self, kind: str) -> Decision:
        return self.decisions[self.examples[kind][0].id]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("job")
    save_model(home / "student", hidden=32, layers=1)
    return home


@pytest.fixture(scope="module")
def made(folder):
    path = write_job(folder, [*map(orjson.dumps, ROWS), *BAD_LINES, orjson.dumps(LAST)])
    store = str(folder / "store")
    with endpoint(misbehaves) as (seen, url):
        raw = spec_of(path, url)
        curated = make(raw, store, "prepare", "generate", "curate")
    prepared = stage_of("prepare", raw, store, {}).out
    examples: dict[str, list[Example]] = {}
    for example in read_examples(prepared, "train"):
        examples.setdefault(example.messages[-1]["content"].partition(":")[0], []).append(example)
    generated = stage_of("generate", raw, store, {}).out
    responses = {r.example_id: r for r in read_responses(generated)}
    words = [str(path), "--store", store, "--teacher", url, "--student", str(folder / "student")]
    words += [f"--set={knob}" for knob in EASY]
    return Made(raw, store, seen, examples, responses, read_decisions(curated), words)


def test_1_equal_questions_under_different_system_prompts_get_an_answer_each(made):
    kind, rude = made.examples["same"]
    assert kind.messages[1] == rude.messages[1]
    for example in (kind, rude):
        answer = ANSWERS[example.messages[0]["content"]]
        assert made.responses[example.id].text.endswith(f"Answer: {answer}")
        assert made.decisions[example.id].target_text == answer


def test_2_an_unparseable_chain_of_thought_costs_its_own_row_alone(made):
    assert not made.decision("unparseable").kept
    assert made.decision("object").kept
    assert made.decision("object").target_text == "entailment"
    assert made.decision("last").kept


def test_3_nothing_after_a_bad_row_is_lost_and_the_bad_ones_are_kept_with_their_reason(made):
    assert [example.id for example in made.examples["last"]] == ["last"]
    assert sum(len(found) for found in made.examples.values()) == len(ROWS) + 1
    found = {bad.line: bad for bad in quarantined(build(made.raw), open_store(made.store))}
    first = len(ROWS) + 1
    assert {first + 1, first + 2, first + 3} <= set(found)
    assert all(bad.reason and bad.file.endswith("train.jsonl") for bad in found.values())
    assert found[first + 2].raw == "not json"
    assert found[first + 3].encoding == "base64"


def test_4_a_truncated_answer_is_not_learned_from(made):
    decision = made.decision("cut")
    assert (decision.kept, decision.filter) == (False, "finished")
    assert "truncated" in decision.reason


def test_5_an_answer_outside_the_label_set_is_not_learned_from(made):
    decision = made.decision("outside")
    assert (decision.kept, decision.filter) == (False, "label_in_set")


@pytest.mark.parametrize(
    ("style", "target_text", "kept"),
    [
        ("drop", "entailment", None),
        ("field", "entailment", "I compare them."),
        ("think", "<think>\nI compare them.\n</think>\n\nentailment", None),
    ],
)
def test_7_the_rationale_is_dropped_kept_beside_or_learned_as_asked(made, style, target_text, kept):
    num_asked = len(made.seen.seen)
    raw = {**made.raw, "curate": {**made.raw["curate"], "rationale": style}}
    decisions = read_decisions(make(raw, made.store, "curate"))
    assert decisions["last"].target_text == target_text
    assert decisions["last"].rationale == kept
    assert len(made.seen.seen) == num_asked  # the teacher is not asked again


def test_8_the_users_own_system_prompt_is_asked_with_and_learned_with(made):
    for body in made.seen.bodies:
        systems = [m["content"] for m in body["messages"] if m["role"] == "system"]
        assert systems in (["be kind"], ["be rude"])
        assert "step by step" in body["messages"][-1]["content"]
    for example in (e for found in made.examples.values() for e in found):
        assert example.messages[0]["content"] in ANSWERS
        assert "step by step" not in example.messages[-1]["content"]


def test_9_id_metadata_expected_answer_and_tools_travel_with_the_row(made):
    (example,) = made.examples["whole"]
    assert (example.id, example.expected) == ("mine-1", "entailment")
    assert example.metadata == {"source": "a book", "page": 7}
    assert example.tools == TOOLS
    (body,) = [b for b in made.seen.bodies if b["messages"][1]["content"].startswith("whole")]
    assert body["tools"] == TOOLS
    assert made.responses["mine-1"].example_id == "mine-1"
    assert made.decisions["mine-1"].kept


def test_the_command_shows_what_was_left_out_and_why(made, capsys):
    def rows(*flags: str) -> tuple[list[str], str]:
        with pytest.raises(SystemExit) as ended:
            main(["rows", *made.words, *flags])
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out.splitlines(), said.err

    lines, said = rows("--rejected")
    bad = {id_: d for id_, d in made.decisions.items() if not d.kept}
    assert len(lines) == len(bad) == 3
    assert all(f"{d.filter}: {d.reason}" in " ".join(lines) for d in bad.values())
    assert "1 finished: truncated" in said
    (line,), _ = rows("--rejected", "--reason", "label_in_set")
    assert made.decision("outside").id in line
    assert "It is hard to say" in line
    (whole,), _ = rows("--rejected", "--reason", "label_in_set", "--json")
    assert json.loads(whole)["messages"][-1]["content"].endswith("Answer: maybe")
    lines, said = rows("--quarantined")
    assert any("not json" in line and f":{len(ROWS) + 3}" in line for line in lines)
    assert rows("--removed") == ([], "no rows removed\n")
