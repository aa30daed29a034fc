"""Existing answers scored by an endpoint: vLLM's server lists the tokens of a whole chat."""

import json
import math
from pathlib import Path

import pytest
from aiohttp import web

from retort.errors import SpecError, StageError
from retort.spec import build
from retort.stages.generate.check import check
from retort.stages.generate.scored_tokens import scored_tokens
from tests.stages.test_listed_signals import agrees, at, captured, local_capture
from tests.support.misbehaving import SECRET, endpoint
from tests.support.tiny import write_rows


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def listed(*texts: str) -> list:
    """What a server lists of a chat's tokens: each with probability 0.5, and X with 0.25."""
    places = [
        {
            str(at): {"logprob": math.log(0.5), "rank": 1, "decoded_token": text},
            "9999": {"logprob": math.log(0.25), "rank": 2, "decoded_token": "X"},
        }
        for at, text in enumerate(texts)
    ]
    return [None, *places]


def found_in(texts: tuple[str, ...], answer: str) -> list[str]:
    body = {"choices": [{}], "prompt_logprobs": listed(*texts)}
    return [each["token"] for each in scored_tokens({"body": body, "scored": answer})]


@pytest.mark.parametrize(
    ("texts", "answer", "wanted"),
    [
        (("<u>", "4", "2", "<a>", "4", "2", "</s>"), "42", ["4", "2", "</s>"]),
        (("<u>", "1", "<a>", " 4", "2", "<|im_end|>", "\n"), "42", None),
        (("<u>", "1", "<a>", " 4", "2", "<|im_end|>", "\n"), " 42", [" 4", "2", "<|im_end|>"]),
        (("<a>", "caf", "", "é", "</s>"), "café", ["caf", "", "é", "</s>"]),
        (("<a>", "aa", "aa"), "aaa", None),
        (("<a>", "aa", "a"), "aa", None),
        (("<a>", "a", "a", "a"), "aa", ["a", "a"]),
        # The chat says it, and goes on: its template took the answer out.
        (("<u>", "42", "<a>", "So", "</s>"), "42", None),
        (("<u>", "", "</s>"), "", None),
    ],
)
def test_an_answer_is_found_at_the_end_of_its_chat_alone(texts, answer, wanted):
    assert found_in(texts, answer) == (wanted or [])


def test_a_tokens_own_entry_is_in_its_list_where_it_is_among_the_best():
    lists = listed("4", "<end>")
    lists[1]["7"] = {"logprob": -0.01, "rank": 1, "decoded_token": "7"}
    lists[1]["0"]["rank"] = 5
    raw = {"body": {"prompt_logprobs": lists}, "scored": "4"}
    first, last = scored_tokens(raw)
    assert [each["token"] for each in first["top_logprobs"]] == ["X", "7"]
    assert [each["token"] for each in last["top_logprobs"]] == ["<end>", "X"]
    assert scored_tokens({"body": {"prompt_logprobs": [None, 3]}, "scored": "4"}) == []


def test_vllms_server_scores_answers_as_the_model_does_here(servers_folder, vllm_url, tmp_path):
    model = servers_folder / "vllm" / "model"
    rows = write_rows(tmp_path / "train.jsonl", 20, seed=11)
    found = captured(at(vllm_url, rows, top_k=8, mode="score"), tmp_path / "there")
    local = local_capture(model, rows, tmp_path / "here", max_model_len=128, mode="score")
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = [text.encode() for text in sorted(vocabulary, key=vocabulary.get)]
    assert agrees(found, local, pieces, end=2) > 100
    assert len(found.signals) == 20 and found.facts["num_text_only"] == 0
    again = captured(at(vllm_url, rows, top_k=8, mode="score"), tmp_path / "there")
    assert again.files == found.files
    assert (found.facts["num_asked"], again.facts["num_asked"]) == (20, 0)


async def _says_nothing(seen, request, text):
    return web.json_response({"choices": [{"message": {"content": "?"}}], "usage": {}})


def test_an_endpoint_that_scores_nothing_is_refused_by_its_first_answers(tmp_path):
    rows = write_rows(tmp_path / "train.jsonl", 12, seed=3)
    with endpoint(_says_nothing) as (seen, url):
        with pytest.raises(StageError, match="it lists no log-probabilities"):
            captured(at(url, rows, mode="score"), tmp_path / "store")
        assert {body["messages"][-1]["role"] for body in seen.bodies} == {"assistant"}
        assert all(body["prompt_logprobs"] == 3 and "top_k" not in body for body in seen.bodies)
        assert len(seen.bodies) < 12


def test_a_provider_that_scores_nothing_is_refused_before_it_is_asked(tmp_path: Path):
    rows = write_rows(tmp_path / "train.jsonl", 4, seed=3)
    raw = at("https://api.openai.com/v1", rows, mode="score")
    with pytest.raises(SpecError, match="does not score existing answers; vLLM's server does"):
        check(build(raw))
