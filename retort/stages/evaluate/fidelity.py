"""How far an exported student is from the student: the KL divergence of their distributions.

The export answers by its own runtime, which gives the probability of its most likely tokens at each
step; the student reads the same answers in one plain forward pass in 32-bit floats.
"""

# N tokens of one answer, V vocabulary, K most probable ids of the export
import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from retort.data import encoding
from retort.events import Reporter
from retort.processes.libraries import lean_imports, resolve_device
from retort.records import JsonObject, Response, read_lines, write_lines
from retort.stages.evaluate.compared_models import (
    answered_examples,
    asked_examples,
    engine_of,
    fitting_length,
    imports_of,
    model_of,
    requests_of,
    settings_of,
)
from retort.stages.stage import Stage, from_arguments
from retort.store.signals import Signal
from retort.store.signals.signal import cut

# Of how many answers, and over how many ids at each token, beside one bucket for all others.
MOST_ANSWERS, TOP_K = 64, 64
MOST_TOKENS = 64  # at a time: a row of all ids takes a megabyte
LEAST = 1e-12  # the least probability of that bucket, as signals store it
# What the one process leaves for the other.
SIGNALS, ANSWERS = "scratch/signals.npz", "scratch/answers.jsonl"
Doubles = npt.NDArray[np.float64]


def answer(arguments: JsonObject, role: str, report: Reporter) -> None:
    """Leaves the export's answers and their signals in the artifact's scratch folder."""
    stage = from_arguments(arguments, report)
    examples = answered_examples(stage, role)[:MOST_ANSWERS]
    config = stage.input("train").read_json("student/config.json")
    vocabulary = config.get("vocab_size") or TOP_K
    with model_of(stage, role) as model, imports_of(stage, role):
        length, top_k = fitting_length(stage, model), min(TOP_K, vocabulary)
        settings = replace(settings_of(stage.spec, model), top_k=top_k, max_model_len=length)
        module = engine_of(stage, role)
        answers = list(module.open_engine(settings).generate(requests_of(examples)))
    answers = [answer for answer in answers if answer.signal is not None]
    stage.out.write(ANSWERS, write_lines([module.parse(a.id, a.raw) for a in answers]))
    # Not as a teacher's signal is stored, whose probabilities are rounded.
    arrays, packed = [vars(answer.signal) for answer in answers], io.BytesIO()
    np.savez(packed, **{f"{at}.{k}": v for at, each in enumerate(arrays) for k, v in each.items()})
    stage.out.write(SIGNALS, packed.getvalue())


def measure(arguments: JsonObject, role: str, report: Reporter) -> JsonObject:
    """Returns `statistics` (by role, metric and example: summed nats, tokens) and `notes`.

    KL(student || export) is taken at every token of the export's own answers, which `answer` left.
    It runs in another process, because no engine gives back all of its memory.
    """
    stage = from_arguments(arguments, report)
    responses = read_lines(Response, stage.out.read(ANSWERS))
    ids = {response.id: response.token_ids for response in responses}
    packed, names = np.load(io.BytesIO(stage.out.read(SIGNALS))), Signal.__dataclass_fields__
    found = {r.id: Signal(*(packed[f"{at}.{k}"] for k in names)) for at, r in enumerate(responses)}
    sums: dict[str, list[float]] = {}
    for name, start, logprobs_NV in _students(stage, ids):
        some = cut(found[name], start, start + len(logprobs_NV))
        nats, number = sums.get(name, (0.0, 0.0))
        sums[name] = [nats + float(divergence(logprobs_NV, some).sum()), number + len(logprobs_NV)]
    return {"statistics": {role: {"kl_to_student": sums}}, "notes": []}


def _students(stage: Stage, ids: dict[str, list[int]]) -> Iterator[tuple[str, int, Doubles]]:
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
        examples = [example for example in asked_examples(stage) if example.id in ids]
        chats, tools = [e.messages for e in examples], [e.tools for e in examples]
        prompts = encoding.render_each(tokenizer, chats, tools)
        for example, prompt in zip(examples, prompts, strict=True):
            answer = ids[example.id]
            if isinstance(prompt, str) or not answer:
                continue
            ids_1T = torch.tensor([prompt + answer], device=device)
            kept = len(answer) + 1
            logits_NV = model(ids_1T, use_cache=False, logits_to_keep=kept).logits[0, :-1]
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
