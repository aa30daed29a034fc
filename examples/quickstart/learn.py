"""How the quickstart's two models learn: next-token training on worked solutions.

The loss covers the solution and its end token only; the question is context, never a target.
"""

import math
import random
import time
from dataclasses import dataclass

import torch
from tokenizer import encode_problem
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import Problem

# B batch, T time, N supervised tokens of the batch, V vocabulary, D hidden size
IGNORED = -100  # cross_entropy's own mark for a position without a target


@dataclass(frozen=True)
class Recipe:
    """One model's shape and training; `layers, hidden, heads, inner` as in the Llama config."""

    layers: int
    hidden: int
    heads: int
    inner: int
    num_problems: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    autocast: bool  # bfloat16 matrix products: faster where matrices are large, slower where small


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings and heads 32 wide, which vLLM can run on a CPU."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            # About 0.6 / sqrt(hidden): the usual 0.02 is made for models ten times as wide.
            initializer_range=0.05 if recipe.hidden >= 128 else 0.08,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def plan_batches(lengths: list[int], size: int, rng: random.Random) -> list[list[int]]:
    """One epoch's batches of row numbers, of similar lengths within a batch, in random order."""
    order = rng.sample(range(len(lengths)), len(lengths))
    window = size * 16  # sorting whole epochs would put the same rows together each time
    batches = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lengths.__getitem__)
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    rng.shuffle(batches)
    return batches


def collate(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, padded right; the shift by one happens here."""
    longest = max(len(prompt) + len(solution) for prompt, solution in rows) - 1
    inputs_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    targets_BT = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, solution) in enumerate(rows):
        length = len(prompt) + len(solution) - 1
        inputs_BT[row, :length] = torch.tensor((prompt + solution)[:-1])
        targets_BT[row, len(prompt) - 1 : length] = torch.tensor(solution)
    return inputs_BT, targets_BT


def solution_loss(model: LlamaForCausalLM, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the supervised tokens, in nats; the head runs on those alone."""
    hidden_BTD = model.model(input_ids=inputs_BT).last_hidden_state  # causal: right pads are unseen
    supervised_BT = targets_BT != IGNORED
    logits_NV = model.lm_head(hidden_BTD[supervised_BT]).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_BT[supervised_BT])


def schedule(step: int, num_steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to zero: the learning rate's factor."""
    warmup = max(1, num_steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    recipe: Recipe,
) -> None:
    """Trains in place and prints the loss ten times."""
    rows = [encode_problem(tokenizer, problem) for problem in problems]
    lengths = [len(prompt) + len(solution) for prompt, solution in rows]
    rng = random.Random(recipe.seed)
    plan = [
        batch
        for _ in range(recipe.epochs)
        for batch in plan_batches(lengths, recipe.batch_size, rng)
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: schedule(s, len(plan)))
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(plan, start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
            loss = solution_loss(model, *collate([rows[index] for index in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % max(1, len(plan) // 10) == 0:
            print(
                f"  step {step}/{len(plan)}  loss {loss.item():.4f}"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )


@torch.inference_mode()
def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
) -> float:
    """The share of problems whose greedy solution ends in exactly the right `#### answer`."""
    model.eval()
    right = 0
    for start in range(0, len(problems), 100):
        part = problems[start : start + 100]
        chats = [[{"role": "user", "content": problem.question}] for problem in part]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output_BT = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        new_BT = output_BT[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_BT, skip_special_tokens=True)
        right += sum(
            text.rpartition("####")[2].strip() == problem.answer
            for text, problem in zip(texts, part, strict=True)
        )
    return right / len(problems)
