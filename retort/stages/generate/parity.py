"""Parity: a plain forward pass must give the distributions that the engine captured.

It notices a signal shifted by a token, another precision or template, and a broken kernel.
"""

# T tokens, V vocabulary, K teacher top-k
from typing import Any

import numpy as np

from retort.data import encoding
from retort.errors import StageError
from retort.events import Reporter
from retort.records import JsonObject, Response, ids_sha256, read_lines
from retort.stages.stage import Stage, from_arguments, stream_examples
from retort.stages.teacher_requests import instruction_of, with_instruction
from retort.store.signals import Signal, SignalFile

# Mean KL in nats. Half precision rounds differently in every kernel; a shift costs whole nats.
MOST_KL = {"float32": 5e-3}
MOST_KL_HALF = 5e-2


def parity(arguments: JsonObject, dtype: str, report: Reporter) -> dict[str, float]:
    """Returns the mean KL (nats) and the mean gap of the tokens' log-probabilities.

    Raises `StageError` when they are too far off, or when the model cannot be run plainly.
    """
    stage = from_arguments(arguments, report)
    chosen = _chosen(stage)
    model, tokenizer = _load(stage, dtype)
    by_id = {r.example_id: r for r, _ in chosen}
    chats: dict[str, Any] = {}
    for example in stream_examples(stage.input("prepare"), "train", "validation"):
        if example.id in by_id:
            chats[example.id] = (example.messages, example.tools)
        if len(chats) == len(by_id):
            break
    divergences, gaps, instruction = [], [], instruction_of(stage.spec)
    for response, signal in chosen:
        messages, tools = chats[response.example_id]
        chat = with_instruction(response.messages or messages, instruction)
        prompt = encoding.render_one(tokenizer, chat, tools)
        if ids_sha256(prompt) != response.prompt_sha256:
            raise StageError(f"response {response.id} was given to another prompt than its own")
        kl_T, gap_T = compare(signal, _logprobs(model, prompt, response.token_ids))
        divergences.append(kl_T)
        gaps.append(gap_T)
    kl, gap = (float(np.concatenate(values).mean()) for values in (divergences, gaps))
    most = MOST_KL.get(dtype, MOST_KL_HALF)
    if not kl <= most:
        raise StageError(
            f"parity: the captured signal is {kl:.3g} nats of KL from a plain forward pass in "
            f"{dtype} (allowed: {most:g}); the capture cannot be trusted. Compare the engine's "
            "dtype and quantization with the model's, or set generate.runtime.parity_samples: 0"
        )
    return {"kl_nats": kl, "logprob_gap": gap, "num_tokens": float(sum(map(len, gaps)))}


def compare(signal: Signal, logprobs_TV: Any) -> tuple[Any, Any]:
    """Returns per token KL(signal || plain) over K + 1 buckets, and the sampled token's gap."""
    rows = np.arange(len(signal.target_ids_T))
    plain_TK = logprobs_TV[rows[:, None], signal.ids_TK]
    rest_T = np.maximum(1 - np.exp(plain_TK.astype(np.float64)).sum(axis=1), 1e-12)
    plain_TB = np.concatenate([plain_TK, np.log(rest_T)[:, None]], axis=1)
    signal_TB = np.concatenate([signal.logprobs_TK, signal.tail_T[:, None]], axis=1)
    kl_T = (np.exp(signal_TB) * (signal_TB - plain_TB)).sum(axis=1)
    gap_T = np.abs(signal.target_logprobs_T - logprobs_TV[rows, signal.target_ids_T])
    return kl_T, gap_T


def _chosen(stage: Stage) -> list[tuple[Response, Signal]]:
    """Returns the first responses that carry a signal."""
    stored = SignalFile.open(stage.out.read("signals-00000.safetensors"))
    responses = {r.id: r for r in read_lines(Response, stage.out.read("responses-00000.jsonl"))}
    names = [name for name in stored.ids if stored.tokens(name)]
    names = names[: stage.spec.generate.runtime.parity_samples]
    return [(responses[name], stored.row(name)) for name in names]


def _load(stage: Stage, dtype: str) -> tuple[Any, Any]:
    import torch
    import transformers

    teacher, device = stage.spec.generate.teacher, stage.spec.generate.runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            teacher, dtype=dtype, device_map="auto" if device == "cuda" else None
        )
    except Exception as error:
        raise StageError(
            f"parity: transformers cannot load {teacher} ({type(error).__name__}: {error}); set "
            "generate.runtime.parity_samples: 0 to trust the engine's signal unchecked"
        ) from error
    return model.eval(), encoding.load_tokenizer(teacher)


def _logprobs(model: Any, prompt: list[int], ids: list[int]) -> Any:
    """Returns the log-probabilities that predict each of `ids`, (T, V), float32."""
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([prompt + ids], device=model.device)
        logits_TV = model(tokens).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits_TV.float(), dim=-1).cpu().numpy()
