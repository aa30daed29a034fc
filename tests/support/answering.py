"""A tiny model that answers in the form it is asked for: trained here, in seconds, on one core.

It is not clever. What it says is always a label or a number, after a reason where one is asked for.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retort.data import task_types
from retort.data.reasoning import instructed
from tests.support.tiny import SPECIAL, TEMPLATE

LABELS = ("entailment", "neutral", "contradiction")
MAX_LENGTH, VOCABULARY = 1024, 1500


@dataclass(frozen=True)
class Lesson:
    """A chat and the reply that the model learns to give."""

    messages: list[dict[str, Any]]
    reply: str


def lessons(samples: Path, name: str) -> list[Lesson]:
    """Every row of a sample twice: asked as it stands, and with the call for a chain of thought."""
    kind = task_types.load(name)
    instruction = task_types.reasoning_of(kind, "chain_of_thought")
    found = []
    for line in (samples / name / f"train_{name}.jsonl").read_text().splitlines():
        chat = json.loads(line)["messages"]
        answer, reasoned = reply(name, chat[-1]["content"])
        found.append(Lesson(chat, answer))
        found.append(Lesson(instructed(chat, instruction), reasoned))
    return found


def reply(name: str, question: str) -> tuple[str, str]:
    """The answer to a question, alone and with a reason: a simple rule, often wrong."""
    if name == "nli":
        label = LABELS[2 if " not " in question.rsplit("Hypothesis:", 1)[1] else 0]
        return label, f"I compare the two texts word by word.\nAnswer: {label}"
    number = 7 if "how many" in question else 28
    return str(number), f"I count what is left.\n#### {number}"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts, each digit a token of its own, with the tests' template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama with random weights, the same ones every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )


def teach(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chosen: list[Lesson], steps: int
) -> float:
    """Trains on whole prompts, only the replies supervised; returns the last steps' mean loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    order, losses = random.Random(0), []
    rows = [encode(tokenizer, lesson) for lesson in chosen]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        ids_BT, labels_BT = padded(order.sample(rows, 8))
        loss = model(input_ids=ids_BT, attention_mask=ids_BT != 0, labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], int]:
    """The ids of the chat with its reply, and how many of them are the prompt's."""
    text = tokenizer.apply_chat_template(
        lesson.messages, tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(lesson.reply, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, 2], len(prompt)


def padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's ids, padded on the right with 0, and its labels: -100 in prompts and padding."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, -100)
    for index, (ids, start) in enumerate(rows):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        labels_BT[index, start : len(ids)] = ids_BT[index, start : len(ids)]
    return ids_BT, labels_BT


def save_models(folder: Path, samples: Path, steps: int = 110) -> tuple[Path, Path]:
    """Writes a teacher that answers both samples, and a smaller student with random weights."""
    chosen = [*lessons(samples, "nli"), *lessons(samples, "math")]
    texts = [m["content"] for lesson in chosen for m in lesson.messages]
    tokenizer = train_tokenizer([*texts, *(lesson.reply for lesson in chosen)])
    teacher, student = make_model(tokenizer, 64, 2), make_model(tokenizer, 32, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loss = teach(teacher, tokenizer, chosen, steps)
    torch.set_num_threads(threads)
    assert loss < 0.3, f"the teacher has not learned to answer: its loss is {loss:.3f}"
    for name, model in {"teacher": teacher, "student": student}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "teacher", folder / "student"
