"""Real tiny models and what the stage train reads, made from nothing: random rows that a random
teacher answered, with the signal that this teacher gives for them.
"""

# T supervised tokens of a row, K teacher top-k, V vocabulary
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retort.data.encoding import EncodedRow, encode, load_tokenizer, render
from retort.events import SILENT
from retort.processes.libraries import resolve_device
from retort.records import Decision, Example, Response, write_lines
from retort.spec import JobSpec, StageName, build
from retort.stages.stage import Stage
from retort.stages.train import training_rows
from retort.store import Artifact, Store, model_folder, signals
from retort.store.signals import Signal, captured

BATCH_SIZE, TOP_K = 32, 16
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
TEMPLATE = (
    "<bos>{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
# So many tokens of question and of answer, as in the quickstart.
STAGES: tuple[StageName, ...] = ("prepare", "generate", "curate")
QUESTION, ANSWER = (23, 45), (17, 35)


class Shape(NamedTuple):
    """A Llama with heads 32 wide."""

    vocabulary: int
    hidden: int
    layers: int
    inner: int


def save_model(folder: Path, shape: Shape, seed: int) -> None:
    """Writes a Llama with random weights and a tokenizer of as many words as it has ids."""
    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), shape.vocabulary))]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 32,
        num_key_value_heads=shape.hidden // 32,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=1.5 / shape.hidden**0.5,  # logits that have opinions
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def answered(
    base: Path, num_rows: int, answer: tuple[int, int] = ANSWER
) -> list[tuple[Example, Response, EncodedRow]]:
    """Returns questions of random words, their random answers of so many tokens, and the rows that
    these become."""
    tokenizer, random = load_tokenizer(str(base)), np.random.default_rng(0)
    examples, responses = [], []
    for index in range(num_rows):
        few, many = (int(random.integers(*span)) for span in (QUESTION, answer))
        words = random.integers(len(SPECIAL), len(tokenizer), few + many)
        asked = " ".join(f"w{word}" for word in words[: few - 3])
        name = f"train-{index}"
        examples.append(Example(name, "train", [{"role": "user", "content": asked}]))
        ids = [*words[few:].tolist(), tokenizer.eos_token_id]
        text = " ".join(f"w{word}" for word in words[few:])
        responses.append(Response(name, text, ids, "stop", few, len(ids), example_id=name))
    prompts = render(tokenizer, [e.messages for e in examples])
    made = [encode(r.id, p, r.token_ids) for r, p in zip(responses, prompts, strict=True)]
    return list(zip(examples, responses, made, strict=True))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def signals_of(teacher: Path, found: list[EncodedRow], k: int) -> list[tuple[str, Signal]]:
    """Returns the k largest log-probabilities of a teacher at each supervised token."""
    device = resolve_device("auto")
    model = LlamaForCausalLM.from_pretrained(teacher).eval().to(device)
    made = []
    for start in range(0, len(found), BATCH_SIZE):
        part = found[start : start + BATCH_SIZE]
        # Padded on the right, which a causal model does not see.
        ids = [torch.tensor(row.input_ids) for row in part]
        ids_BT = pad_sequence(ids, batch_first=True).to(device)
        hidden_BTH = model.model(input_ids=ids_BT).last_hidden_state
        for row, hidden_TH in zip(part, hidden_BTH, strict=True):
            logits_TV = model.lm_head(hidden_TH[row.first : len(row.input_ids)])
            logprobs_TV = torch.log_softmax(logits_TV, dim=1)
            top_TK, ids_TK = logprobs_TV.topk(k, dim=1)
            labels_T = torch.tensor(row.labels[row.first :], device=device)
            own_T = logprobs_TV.gather(1, labels_T[:, None])[:, 0]
            arrays = (ids_TK.int(), top_TK, labels_T.int(), own_T)
            made.append((row.id, captured(*(array.cpu().numpy() for array in arrays))))
    return made


def write_inputs(
    folder: Path, name: str, made: list[tuple[Example, Response, EncodedRow]], k: int
) -> None:
    """Writes what the stage train reads: examples, answers with their signal, and decisions."""
    base, store = folder / "student", Store(str(folder / name))
    examples, responses, found = zip(*made, strict=True)
    (map_sha256, num_ids), template_sha256 = (
        model_folder.token_map(base),
        model_folder.template_sha256(base),
    )
    packed = signals.pack(signals_of(folder / "teacher", list(found), k), num_ids)
    decisions = [Decision(response.id, True) for response in responses]
    files = {
        ("prepare", "train-00000.jsonl"): write_lines(list(examples)),
        ("generate", "responses-00000.jsonl"): write_lines(list(responses)),
        ("generate", "signals-00000.safetensors"): packed,
        ("curate", "decisions.jsonl"): write_lines(decisions),
    }
    for (stage, file), data in files.items():
        store.artifact(stage, "made").write(file, data)
    facts = {"token_map_sha256": map_sha256, "template_sha256": template_sha256}
    for stage in STAGES:
        store.artifact(stage, "made").commit({"facts": facts})


def spec_of(
    folder: Path, losses: list[dict[str, Any]], teacher: str | None, **knobs: Any
) -> JobSpec:
    """Returns a job that trains the student of a folder; with `teacher`, that one is live.

    `knobs` are of the section train, and go before those of here.
    """
    questions = str(folder / "questions.jsonl")
    return build(
        {
            "name": "benchmark",
            "prepare": {"task_type": "qa", "train": questions, "test": questions},
            "generate": {
                "teacher": str(folder / (teacher or "teacher")),
                "engine": "transformers",
                "top_k": TOP_K,
            },
            "train": {
                "student": str(folder / "student"),
                "losses": losses,
                "teacher": "live" if teacher else "stored",
                "learning_rate": 1e-3,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "batch_size": BATCH_SIZE,
                "num_epochs": 1,
                "keep": "last",
                "runtime": {"device": "cpu", "checkpoint_seconds": 1e6},
                **knobs,
            },
        }
    )


def stage_of(folder: Path, name: str, spec: JobSpec, out: str) -> Stage:
    """Returns the stage train on inputs that `write_inputs` wrote."""
    store = Store(str(folder / name))
    inputs: dict[str, Artifact] = {}
    for stage in STAGES:
        made = store.artifact(stage, "made").finished()
        assert made
        inputs[stage] = made
    return Stage("train", spec, store, inputs, store.artifact("train", out), SILENT, folder / "log")


def steps_of(folder: Path, name: str) -> list[list[EncodedRow]]:
    """Returns the rows of each step, as our trainer takes them."""
    stage = stage_of(folder, name, spec_of(folder, [{"name": "cross_entropy"}], None), "none")
    base = folder / "student"
    data = training_rows.build(stage, base, [load_tokenizer(str(base)).eos_token_id])
    order = training_rows.steps_of_epoch(data, BATCH_SIZE, stage.spec.train.seed, 0)
    return [[data.train[index][0] for index in step] for step in order]
