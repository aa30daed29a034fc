"""Training on the signal of a teacher with another tokenizer: stored, and live in memory."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from retort.data import token_bytes
from retort.data.token_bytes import TokenBytes
from retort.errors import SpecError
from retort.events import Reporter
from retort.spec import build
from retort.stages.stage import TOKENS
from retort.stages.train import check, loop, training_rows
from retort.stages.train.batches import collate
from retort.stages.train.teacher import open_teacher
from retort.store import model_folder
from tests.support import tokenizers_of
from tests.support.tiny import TEMPLATE, save_model
from tests.support.training import job, made

LOSSES = [
    {"name": "cross_entropy", "weight": 0.1},
    {"name": "forward_kl", "weight": 0.4},
    {"name": "chunk_likelihood", "weight": 0.5},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of single letters, and a student of pairs of digits and pieces of words."""
    folder = tmp_path_factory.mktemp("other")
    save_model(folder / "teacher", hidden=64, seed=1)
    texts = [f"{n} and 7 is #### {n + 7}" for n in range(60)] * 3
    tokenizer = tokenizers_of.tokenizer("pairs of digits", texts, size=330)
    marks = ["<system>", "<user>", "<assistant>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks, "pad_token": "<unk>"})
    tokenizer.chat_template = TEMPLATE.replace("<bos>", "<s>").replace("<eos>", "</s>")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    return folder


def job_of(folder, **train):
    """A job whose answers have no new line, which the teacher cannot spell."""
    raw = job(folder, folder / "teacher", folder / "student", losses=LOSSES)
    raw["train"] |= train
    for path in folder.glob("*.jsonl"):
        path.write_text(path.read_text().replace("is\\n####", "is ####"))
    return raw


@pytest.fixture(scope="module")
def ready(folder):
    return made(job_of(folder, num_epochs=6, learning_rate=1e-2), folder)


def built(stage):
    base = model_folder.check(stage.spec.train.student, "train.student")
    student = token_bytes.load(base)
    return training_rows.build(stage, base, sorted(student.ends))


def test_a_stored_signal_says_how_its_tokens_are_spelt(folder, ready):
    stored = TokenBytes.from_json(ready.input("generate").read(TOKENS))
    assert stored == token_bytes.load(folder / "teacher")


def test_a_student_with_other_tokens_learns_from_a_stored_signal(ready):
    heard = []
    stage = ready.__class__(**{**vars(ready), "report": Reporter(heard.append)})
    facts = loop.fit(stage.arguments(), stage.report)
    assert facts["share_known"] == 1.0 and 0.3 < facts["share_aligned"] <= 1.0
    curve = stage.out.read_json("history.json")
    for name in ("forward_kl", "chunk_likelihood"):
        assert curve[-1][f"validation_{name}"] < 0.8 * curve[0][f"validation_{name}"]
    texts = [event.get("text", "") for event in heard]
    assert any("learned by bytes, at 100.0% of the tokens" in t for t in texts)


def test_a_live_teacher_with_other_tokens_gives_what_the_stored_signal_gives(folder, ready):
    stored = built(ready)
    live_stage = made(job_of(folder, teacher="live"), folder)
    live = built(live_stage)
    assert live.by_bytes.live and all(signal is None for _, signal in live.train)
    vocabulary = model_folder.token_map(folder / "student")[1]
    teacher = open_teacher(live_stage, vocabulary, "cpu", live.by_bytes.live)
    theirs = teacher.targets(collate(live.train[:5], "cpu"))
    wanted = collate(stored.train[:5], "cpu").target
    assert torch.equal(theirs.labels_N, wanted.labels_N)
    # The stored signal is quantized, and its events may stand in another order.
    for n in range(len(wanted.labels_N)):
        found, kept = (
            {
                (int(a), int(b)): float(p.exp())
                for a, b, p in zip(
                    t.ids_NK.first_NK[n], t.ids_NK.end_NK[n], t.logprobs_NK[n], strict=True
                )
                if b > a
            }
            for t in (theirs, wanted)
        )
        common = found.keys() & kept.keys()
        assert sum(kept[e] for e in common) > 0.9 * sum(kept.values())
        assert all(found[e] == pytest.approx(kept[e], abs=0.02) for e in common)
    assert torch.equal(theirs.chunks.ends_N, wanted.chunks.ends_N)
    np.testing.assert_allclose(theirs.chunks.surprisal_N, wanted.chunks.surprisal_N, atol=0.2)


def test_the_check_says_what_a_pair_can_give(folder, ready):
    text = check.check_pair(ready.spec, folder / "teacher", folder / "student")
    assert "different tokenizers" in text and "learned by bytes, with chunk_likelihood" in text
    raw = job(folder, folder / "teacher", folder / "teacher", losses=LOSSES)
    with pytest.raises(SpecError, match="chunk_likelihood is for a teacher with another tokenizer"):
        check.check(build(raw))


def test_what_teacher_and_student_begin_together_is_counted_on_texts(folder):
    texts = ["12 and 7 is #### 19", "7"]
    share = token_bytes.share_aligned(folder / "teacher", folder / "student", texts)
    assert share == 1.0  # single letters begin wherever the student's tokens do
    back = token_bytes.share_aligned(folder / "student", folder / "teacher", texts)
    assert 0.2 < back < 0.8
