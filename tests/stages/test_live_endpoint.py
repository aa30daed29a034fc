"""A live teacher behind an endpoint gives what the stored signal would have, and each item once."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.engines import Request, find_engine
from retort.errors import SpecError, StageError
from retort.events import SILENT, Reporter
from retort.spec import build
from retort.stages.engine_settings import settings_of
from retort.stages.stage import Stage, read_examples
from retort.stages.train.batches import TrainingItem, collate
from retort.stages.train.loop import fit
from retort.stages.train.teacher import open_teacher
from retort.stages.train.training_rows import blank
from retort.store import Folder
from tests.support import training
from tests.support.live import (
    assert_alike,
    at,
    folder,
    items_of,
    learned,
    plain_logits,
    serving,
    size_of,
)
from tests.support.misbehaving import SECRET, bad
from tests.support.scoring import Scorer, scoring

__all__ = ["folder", "serving"]


def scored(stage: Stage, model: Path, items: list[TrainingItem]) -> list[TrainingItem]:
    """The items with the signal that the engine `transformers` would have stored of them."""
    asked = Request("", [], response=[])
    settings = replace(settings_of(stage.spec, ""), model=str(model), top_k=16, scores=True)
    chats = {e.id: e.messages for e in read_examples(stage.input("prepare"), "train")}
    requests = [
        replace(asked, id=row.id, messages=chats[row.id], response=row.labels[row.first :])
        for row, _ in items
    ]
    answers = find_engine("transformers").open_engine(settings).score(requests)
    found = {answer.id: answer.signal for answer in answers}
    return [(row, found[row.id]) for row, _ in items]


def test_a_real_vllm_server_gives_the_signal_that_is_stored(folder, serving):
    model, url = serving
    stage = at(folder, url)
    batch = collate(items_of(stage), "cpu", packed=True)
    teacher = open_teacher(stage, size_of(folder), "cpu")
    target = teacher.targets(batch)
    signals = teacher.endpoint.signals([row for row, _ in batch.items])
    teacher.close()
    known = scored(stage, model, batch.items)
    stored = collate(known, "cpu").target
    for name in ("logprobs_NK", "tail_N"):
        ours, theirs = getattr(target, name), getattr(stored, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert (target.ids_NK == stored.ids_NK).float().mean() > 0.99
    for signal, (_, own) in zip(signals, known, strict=True):
        np.testing.assert_allclose(signal.target_logprobs_T, own.target_logprobs_T, atol=1e-3)
    assert_alike(learned(folder, batch, target), learned(folder, batch, stored))
    # And a plain forward pass, from which a list shifted by one token would be whole nats away.
    plain_NV = torch.log_softmax(plain_logits(model, batch.items), dim=1)
    plain_NK, shifted_NK = (x.gather(1, target.ids_NK) for x in (plain_NV, plain_NV.roll(1, 0)))
    torch.testing.assert_close(target.logprobs_NK, plain_NK, rtol=0, atol=1e-3)
    assert (shifted_NK - target.logprobs_NK).abs().mean() > 0.5


def test_each_item_is_asked_once_in_whatever_batch_it_comes_back(folder):
    with scoring(folder / "teacher") as (server, url):
        stage = at(folder, url)
        items = items_of(stage)
        teacher = open_teacher(stage, size_of(folder), "cpu")
        num_before = len(server.asked["/v1/completions"])
        assert len(teacher.targets(collate([blank(items[3])], "cpu")).tail_N) == 0
        teacher.expect(items[:3])
        whole = teacher.targets(collate(items, "cpu"))
        for item in (items[2], blank(items[0]), items[0]):
            row, batch = item[0], collate([item], "cpu")
            target = teacher.targets(batch)
            assert target.ids_NK.shape == target.logprobs_NK.shape == (len(batch.rows_N), 16)
            assert len(target.tail_N) == len(row.labels) - row.first
        first = whole.part(0, len(target.labels_N))
        assert torch.equal(target.ids_NK, first.ids_NK)
        assert torch.equal(target.tail_N, first.tail_N)
        assert len(server.asked["/v1/completions"]) == num_before + len(items)
        teacher.close()


def test_padding_at_an_endpoint_is_sliced_off_by_asking_for_longer_lists(folder):
    k = 12
    with scoring(folder / "padded", max_logprobs=40) as (server, url):
        stage = at(folder, url, k)
        items, size = items_of(stage), size_of(folder)
        teacher = open_teacher(stage, size, "cpu")
        target = teacher.targets(collate(items, "cpu"))
        teacher.close()
    widths = [body["prompt_logprobs"] for body in server.asked["/v1/completions"]]
    assert widths[0] == k < widths[-1]
    plain_NV = torch.log_softmax(plain_logits(folder / "padded", items), dim=1)
    best_NK = plain_NV[:, :size].topk(k, dim=1)
    assert torch.equal(target.ids_NK, best_NK.indices)
    # What padding is left below the k-th id stays in the tail.
    is_above_NP = plain_NV[:, size:] > best_NK.values[:, -1:]
    padding_N = torch.where(is_above_NP, plain_NV[:, size:].exp(), 0).sum(1)
    expected_NK = best_NK.values - torch.log1p(-padding_N)[:, None]
    torch.testing.assert_close(target.logprobs_NK, expected_NK, rtol=0, atol=1e-4)
    mass_N = target.logprobs_NK.exp().sum(1) + target.tail_N.exp()
    torch.testing.assert_close(mass_N, torch.ones_like(mass_N), rtol=0, atol=1e-5)
    assert padding_N.max() > 0.01


def test_an_endpoint_without_tokenize_is_known_by_the_words_for_its_ids(folder):
    with scoring(folder / "teacher", tokenizes=False) as (_, url):
        stage = at(folder, url)
        open_teacher(stage, size_of(folder), "cpu").close()
    with (
        scoring(folder / "teacher", tokenizes=False, swapped=True) as (_, url),
        pytest.raises(SpecError, match="ids have another text than the student's"),
    ):
        open_teacher(at(folder, url), size_of(folder), "cpu")
    with (
        scoring(folder / "teacher", tokenizes=False, words=False) as (_, url),
        pytest.raises(SpecError, match="has no /tokenize and gives no token's text"),
    ):
        open_teacher(at(folder, url), size_of(folder), "cpu")


def test_an_endpoint_with_another_template_or_tokenizer_is_refused(folder, tmp_path):
    other = shutil.copytree(folder / "teacher", tmp_path / "other")
    text = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(text.replace("%}<assistant>", "%}<system>"))
    with (
        scoring(other) as (_, url),
        pytest.raises(SpecError, match=r"from token \d+ on \[3\] against \[5\]"),
    ):
        open_teacher(at(folder, url), size_of(folder), "cpu")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_logprobs": 5}, r"--max-logprobs 16 or more, or lower train\.live_top_k"),
        ({"gives": "nothing"}, "gave no prompt_logprobs; a live teacher needs an endpoint"),
        ({"gives": "logits"}, "start vLLM's server with --logprobs-mode raw_logprobs"),
        ({"gives": "shifted"}, "lists that do not belong to the ids of item train-0"),
        ({"refusal": (404, "no such route")}, "does not score ids: http_404: no such route"),
        ({"refusal": (400, "maximum context length is 8")}, "a larger --max-model-len, or lower"),
        ({"refusal": (500, "broken")}, "does not answer: http_500: broken"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, dict) else "",
)
def test_an_endpoint_that_cannot_score_ids_is_refused_with_what_it_needs(folder, how, message):
    if "refusal" in how:
        how = {"refusal": bad(*how["refusal"])}
    with (
        scoring(folder / "teacher", **how) as (_, url),
        pytest.raises((SpecError, StageError)) as e,
    ):
        open_teacher(at(folder, url), size_of(folder), "cpu")
    assert e.match(message)


LIVE = {"num_epochs": 2, "losses": [{"name": "forward_kl"}], "teacher": "live", "live_top_k": 8}


@pytest.fixture(scope="module")
def kept(folder, tmp_path_factory) -> Stage:
    """A train stage whose rows are kept, and whose teacher no fault has hit yet."""
    home = tmp_path_factory.mktemp("kept")
    raw = training.job(home, folder / "teacher", folder / "student")
    raw["train"] |= {**LIVE, "runtime": {"num_threads": 1, "checkpoint_seconds": 0}}
    return training.made(raw, home)


def taught(
    kept: Stage, url: str, out: Path, scorer: Scorer, timeout: float = 60.0
) -> tuple[bytes, int]:
    """The student that a live teacher gives, and how many tries it took; the fault ends with the
    first."""
    runtime = {"max_attempts": 2, "request_timeout_seconds": timeout, "max_concurrency": 2}
    where = {"engine": "openai", "endpoint": url, "mode": "answer", "top_k": 0, "runtime": runtime}
    spec = build(kept.spec.model_dump(mode="json") | {"generate": {"teacher": "tiny", **where}})
    stage = replace(kept, spec=spec, out=Folder(str(out)))
    try:
        fit(stage.arguments(), SILENT)
        tries = 1
    except StageError:
        scorer.fault, tries = "", 2
        fit(stage.arguments(), SILENT)
    return stage.out.read("student/model.safetensors"), tries


@pytest.fixture(scope="module")
def undisturbed(kept, folder, tmp_path_factory) -> tuple[Path, bytes, int]:
    """The models' folder, the student, and how many rows were scored for it."""
    with scoring(folder / "teacher") as (scorer, url):
        student, _ = taught(kept, url, tmp_path_factory.mktemp("well") / "out", scorer)
        return folder, student, len(scorer.asked["/v1/completions"])


@pytest.mark.parametrize("fault", ["429", "500", "hang", "garbage", "death"])
def test_whatever_befalls_a_live_teacher_for_a_while_the_student_becomes_the_same(
    kept, undisturbed, tmp_path, fault
):
    folder, student, num_scored = undisturbed
    more = {"fault": fault, "fault_from": num_scored // 2, "fault_times": 2}
    with scoring(folder / "teacher", **more) as (scorer, url):
        # Only where it hangs is a short wait needed, in which a busy machine may miss an answer.
        waits = {"timeout": 3.0} if fault == "hang" else {}
        assert taught(kept, url, tmp_path / "out", scorer, **waits) == (student, 1)
        num_asked = len(scorer.asked["/v1/completions"])
        assert num_asked == num_scored + 2 or (fault == "hang" and num_asked > num_scored + 2)


@pytest.mark.parametrize("fault", ["500", "garbage", "death"])
def test_a_live_teacher_that_stays_away_ends_a_try_and_the_next_goes_on(
    kept, undisturbed, tmp_path, fault
):
    folder, student, num_scored = undisturbed
    more = {"fault": fault, "fault_from": num_scored // 2, "fault_times": 10**6}
    with scoring(folder / "teacher", **more) as (scorer, url):
        assert taught(kept, url, tmp_path / "out", scorer) == (student, 2)


def test_the_key_reaches_the_endpoint_and_nothing_that_is_said(folder, monkeypatch):
    monkeypatch.setenv("TINY_KEY", SECRET)
    said = []
    with scoring(folder / "teacher", refusal=bad(422, f"what is {SECRET}?")) as (server, url):
        stage = at(folder, url, api_key_env="TINY_KEY")
        stage = replace(stage, report=Reporter(said.append))
        with pytest.raises(SpecError, match=r"what is \*\*\*\?") as refused:
            open_teacher(stage, size_of(folder), "cpu")
        assert SECRET not in str(refused.value) + str(said)
        server.refusal = bad(401, f"not {SECRET}")
        with pytest.raises(StageError, match="refused the key in TINY_KEY") as denied:
            open_teacher(stage, size_of(folder), "cpu")
        assert SECRET not in str(denied.value)
        assert set(server.keys) == {f"Bearer {SECRET}"}
