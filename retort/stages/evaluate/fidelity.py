"""How far an exported student is from the student: the KL divergence of their distributions.

The export answers by its own runtime, which gives the probability of its most likely tokens at each
step; the student reads the same answers in one plain forward pass in 32-bit floats.
"""

# N tokens of one answer, V vocabulary, K most probable ids of the export
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data import encoding
from retort.engines import Answer
from retort.events import Reporter
from retort.processes.libraries import lean_imports, resolve_device
from retort.records import Example
from retort.stages.engine_settings import open_engine
from retort.stages.evaluate.compared_models import (
    answered_examples,
    engine_name,
    engine_of,
    home_of,
    model_of,
    requests_of,
    settings_of,
)
from retort.stages.stage import Stage, from_arguments
from retort.store.signals import Signal
from retort.store.signals.signal import cut

# Of how many answers, and over how many ids at each token, beside one bucket for all others.
MOST_ANSWERS, TOP_K = 64, 64
MOST_TOKENS = 256  # at a time: a row of all ids takes a megabyte
LEAST = 1e-12  # the least probability of that bucket, as signals store it
Doubles = npt.NDArray[np.float64]


def measure(arguments: dict[str, Any], role: str, report: Reporter) -> dict[str, Any]:
    """Returns `statistics` (by role, metric and example: summed nats, tokens) and `notes`.

    KL(student || export) is taken at every token of the export's own answers.
    """
    stage = from_arguments(arguments, report)
    examples = answered_examples(stage, role)[:MOST_ANSWERS]
    with model_of(stage, role) as model:
        config = stage.input("train").read_json("student/config.json")
        top_k = min(TOP_K, config.get("vocab_size", TOP_K))
        settings = replace(settings_of(stage.spec, model), top_k=top_k, home=home_of(stage, role))
        engine = open_engine(stage.spec, engine_name(stage, role), settings, report)
        answers = {answer.id: answer for answer in engine.generate(requests_of(examples))}
        del engine
    module = engine_of(stage, role)
    ids = {name: module.parse(name, answer.raw).token_ids for name, answer in answers.items()}
    return {
        "statistics": {role: {"kl_to_student": _sums(stage, examples, answers, ids)}},
        "notes": [],
    }


def _sums(
    stage: Stage, examples: list[Example], answers: dict[str, Answer], ids: dict[str, list[int]]
) -> dict[str, list[float]]:
    """Returns the summed nats and the number of tokens of each answer."""
    sums: dict[str, list[float]] = {}
    for name, start, logprobs_NV in _students(stage, examples, ids):
        if (signal := answers[name].signal) is not None:
            nats_N = divergence(logprobs_NV, cut(signal, start, start + len(logprobs_NV)))
            nats, number = sums.get(name, (0.0, 0.0))
            sums[name] = [nats + float(nats_N.sum()), number + len(nats_N)]
    return sums


def _students(
    stage: Stage, examples: list[Example], ids: dict[str, list[int]]
) -> Iterator[tuple[str, int, Doubles]]:
    """Yields the student's log-probabilities at the tokens of the given answers, (N, V), some of an
    answer's at a time: its id, the first of these tokens, and they."""
    with lean_imports():
        import torch
        import transformers

    device = resolve_device(stage.spec.evaluate.runtime.device)
    with stage.input("train").local_copy("student") as folder, torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.to(device).eval()
        tokenizer = encoding.load_tokenizer(str(folder))
        chats, tools = [e.messages for e in examples], [e.tools for e in examples]
        prompts = encoding.render_each(tokenizer, chats, tools)
        for example, prompt in zip(examples, prompts, strict=True):
            answer = ids[example.id]
            if isinstance(prompt, str) or not answer:
                continue
            ids_1T = torch.tensor([prompt + answer], device=device)
            logits_NV = model(ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1]
            for start in range(0, len(logits_NV), MOST_TOKENS):
                some_NV = logits_NV[start : start + MOST_TOKENS].double()
                yield example.id, start, torch.log_softmax(some_NV, dim=-1).cpu().numpy()


def divergence(logprobs_NV: Doubles, signal: Signal) -> Doubles:
    """Returns KL(student || export) at each token, (N,), in nats, over the export's K most probable
    ids and one bucket for all others: never above the KL over all ids (the data processing
    inequality; Cover & Thomas, "Elements of Information Theory", 2.8)."""
    own_NK = np.take_along_axis(logprobs_NV, signal.ids_TK.astype(np.int64), axis=1)
    theirs_NK, shares_NK = signal.logprobs_TK.astype(np.float64), np.exp(own_NK)
    rest_N = np.clip(1 - shares_NK.sum(axis=1), LEAST, 1)
    tail_N = np.log(np.clip(1 - np.exp(theirs_NK).sum(axis=1), LEAST, 1))
    of_top_N = (shares_NK * (own_NK - theirs_NK)).sum(axis=1)
    found: Doubles = of_top_N + rest_N * (np.log(rest_N) - tail_N)
    return found
