"""On-policy rounds with a teacher at an endpoint: it scores the texts that the student writes."""

import pytest

from retort.errors import SpecError
from retort.spec import load
from retort.stages.train.check import check
from retort.store import InputFolder
from tests.support.rounds import ROUNDS, train, write

LOCAL = ("train.controls=[]", "generate.temperature=0", "generate.dtype=float32")


def at(url: str, *more: str) -> tuple[str, ...]:
    """Knobs that lead to the teacher named tiny at an address."""
    where = ("generate.engine=openai", f"generate.endpoint={url}", "generate.teacher=tiny")
    return (
        *LOCAL,
        *where,
        "generate.api_key_env=TEACHER_KEY",
        "generate.max_model_len=null",
        *more,
    )


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "not-asked-for")


def facts(artifact):
    return InputFolder(artifact.uri).read_manifest()["facts"]


def test_the_rounds_are_those_of_the_same_teacher_run_here(servers_folder, vllm_url, tmp_path):
    path = write(tmp_path / "job")
    overrides = at(vllm_url, "train.on_policy.engine=transformers")
    found = train(path, tmp_path / "store", overrides)
    model = servers_folder / "vllm" / "model"
    here = train(path, tmp_path / "here", (*LOCAL, f"generate.teacher={model}"))
    of_scores = facts(found["scores-001"])
    assert of_scores["logprobs_mode"] == "endpoint" and of_scores["num_text_only"] == 0
    assert facts(found["rollouts-001"])["logprobs_mode"] != "endpoint"
    records, others = (facts(each["train"])["rounds"] for each in (found, here))
    assert [record["num"] for record in records] == [ROUNDS["prompts"]] * 2
    # The students differ by the rounding of what the server wrote, and so may an answer.
    for record, other in zip(records, others, strict=True):
        assert record["divergence"] == pytest.approx(other["divergence"], rel=0.35)
        assert 0 < record["loss_before"] < 2.5
    seen = []
    again = train(path, tmp_path / "store", overrides, lambda *event: seen.append(event))
    assert again == found and {event["kind"] for _, event in seen} == {"cached", "note"}


@pytest.mark.parametrize(
    ("url", "engine", "said"),
    [
        ("https://api.openai.com/v1", "auto", "vLLM's server does: name it in"),
        ("http://127.0.0.1:9/v1", "openai", "train.on_policy.engine: openai runs no model"),
    ],
)
def test_what_cannot_score_or_write_is_refused_before_a_run(url, engine, said, tmp_path):
    path = write(tmp_path)
    overrides = at(url, f"train.on_policy.engine={engine}")
    with pytest.raises(SpecError, match=said):
        check(load(path, list(overrides))[0])
