"""What the tests of a live teacher share: models, rows, items, and the slow obvious ways."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from retort import losses
from retort.data import encoding
from retort.losses import Target
from retort.stages.prepare import prepare
from retort.stages.stage import Stage, read_examples
from retort.stages.train.batches import Batch, TrainingItem
from retort.stages.train.head import Sums, Term, losses_of, sums_of
from retort.stages.train.objective import last_hidden, trusted_head
from retort.store import model_folder
from tests.support import stages
from tests.support.tiny import save_model, write_rows

TERMS = [
    Term("forward_kl", losses.forward_kl, 0.5),
    Term("jsd", partial(losses.jsd, temperature=2.0), 0.5),
]
ANSWERS = ("4", "12 + 30 is 42.", "No: 7", "It is 8, I think")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, the same with a padded vocabulary, a student, and rows."""
    folder = tmp_path_factory.mktemp("live")
    save_model(folder / "teacher", hidden=64, seed=1)
    save_model(folder / "padded", hidden=64, seed=1, vocabulary=128)
    save_model(folder / "student", hidden=32, layers=1, seed=2)
    write_rows(folder / "train.jsonl", 6, seed=0)
    return folder


def staged(folder: Path, teacher: Path | str, engine: str = "transformers", **knobs) -> Stage:
    """A train stage with a live teacher, its rows prepared."""
    train = {"student": str(folder / "student"), "teacher": "live", **knobs.pop("train", {})}
    raw = stages.job(teacher, folder / "train.jsonl", engine, **knobs)
    raw["train"] |= train
    store = str(folder / "store")
    first = stages.stage_of("prepare", raw, store, {})
    if not first.out.finished():
        first.out.commit({"facts": prepare(first)})
    return stages.stage_of("train", raw, store, {"prepare": first.out.finished()})


def items_of(stage: Stage) -> list[TrainingItem]:
    """Items of the first examples, with an end token each."""
    tokenizer = encoding.load_tokenizer(stage.spec.train.student)
    found: list[TrainingItem] = []
    examples = read_examples(stage.input("prepare"), "train")
    for example, text in zip(examples, ANSWERS, strict=False):
        prompt = encoding.render_one(tokenizer, example.messages)
        ids = encoding.response_ids(tokenizer, text)
        found.append((encoding.encode(example.id, prompt, ids), None))
    return found


def plain_logits(model_folder: Path, items: list[TrainingItem]) -> torch.Tensor:
    """The logits at every supervised place, one unpadded row at a time, of all ids."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        return torch.cat(
            [model(torch.tensor([row.input_ids])).logits[0, row.first :] for row, _ in items]
        )


def size_of(folder: Path) -> int:
    return model_folder.token_map(folder / "student")[1]


def learned(
    folder: Path, batch: Batch, target: Target, teacher=None
) -> tuple[Sums, list[torch.Tensor]]:
    """The losses of the student, and its gradients."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "student")
    head, _ = trusted_head(model, size_of(folder), batch.input_ids_BT)
    assert head is not None
    hidden_BTH = last_hidden(model, batch.input_ids_BT, position_ids_BT=batch.position_ids_BT)
    hidden_NH = hidden_BTH[batch.rows_N, batch.times_N]
    sums = losses_of(hidden_NH, replace(head, chunk_tokens=7), target, TERMS, teacher)
    sums.total_.backward()
    return sums, [p.grad for p in model.parameters()]


def dense(folder: Path, batch: Batch, logits_NV: torch.Tensor) -> tuple[Sums, list[torch.Tensor]]:
    """The same on the student's own logits, by plain autograd, beside the teacher's logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "student")
    found = model(input_ids=batch.input_ids_BT)
    own_NV = found.logits[batch.rows_N, batch.times_N][:, : size_of(folder)]
    sums = sums_of(own_NV, replace(batch.target, teacher_logits_NV=logits_NV), TERMS)
    sums.total_.backward()
    return sums, [p.grad for p in model.parameters()]


def assert_alike(found, expected) -> None:
    (ours, gradients), (theirs, others) = found, expected
    torch.testing.assert_close(ours.values_L, theirs.values_L, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def serving(servers_folder, vllm_url) -> tuple[Path, str]:
    """The folder and the address of the model that a real vLLM server serves as `tiny`."""
    return servers_folder / "vllm" / "model", vllm_url


def at(folder: Path, url: str, k: int = 16, **knobs) -> Stage:
    """A train stage with the model `tiny` at an endpoint."""
    runtime = {"max_attempts": 1, "request_timeout_seconds": 20.0}
    train = {"live_top_k": k, **knobs.pop("train", {})}
    return staged(folder, "tiny", "openai", endpoint=url, runtime=runtime, train=train, **knobs)
