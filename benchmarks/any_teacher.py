"""A teacher with another tokenizer: are chunks exact, what does a step cost, what is learned?

`python -m benchmarks.any_teacher` cuts 10,000 texts with ten families of tokenizers, each as the
teacher of the next; times a training step on a translated signal against one on a signal of the
student's own tokens; and trains a second student of the quickstart, whose tokenizer packs digits
in pairs and cuts words otherwise, on the stored signal of the quickstart's teacher and, as the
control, on its text: three seeds, paired on the same test problems. Six trainings of the
quickstart's length take it to about 13 minutes.
"""

import itertools
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import Measure, show
from benchmarks.losses import layer, memory, stored
from benchmarks.other_student import make_base
from benchmarks.seeds import SEEDS, Scores
from benchmarks.students import job_of, made_in, tell, trained
from retort import losses
from retort.data import encoding
from retort.data.token_bytes import ByteOrder, TokenBytes, token_bytes, without_lead
from retort.losses import Chunks, Ranges, Target
from retort.spec import JobSpec
from retort.stages.train.head import Head, Term, losses_of
from retort.stages.train.translation import Translator
from retort.store.signals import Signal, captured
from tests.support import tokenizers_of

NUM_TEXTS, NUM_TOKENS, HIDDEN, VOCABULARY = 10_000, 1024, 576, 32_000
# What the same teacher's signal adds with the student's own tokenizer: `benchmarks.seeds`, pooled.
SAME_TOKENIZER_GAIN = 0.056
LOSSES = {
    "student": [
        {"name": "cross_entropy", "weight": 0.2},
        {"name": "forward_kl", "weight": 0.8, "temperature": 2},
    ],
    "control": [{"name": "cross_entropy"}],
}


def weighed(table: TokenBytes, ids: list[int], text: str, weights: np.ndarray[Any, Any]) -> Signal:
    """Returns a signal that says of each token the weights of its bytes, and that all may end.

    So the surprisal of a chunk says which bytes the teacher's tokens in it are.
    """
    parts = table.of(ids[:-1]) or []
    edges = np.maximum(np.cumsum([0, *map(len, parts)]) - bool(without_lead(parts, text)), 0)
    logprobs = [-weights[a:b].sum() for a, b in itertools.pairwise(edges)] + [-weights[-1]]
    end = max(table.ends)
    top_TK = np.array([[i, end if i != end else 0] for i in ids], np.int32)
    half_TK = np.log(np.full(top_TK.shape, 0.4)).astype(np.float32)
    return captured(top_TK, half_TK, np.array(ids, np.int32), np.array(logprobs, np.float32))


def chunks_of(teacher: str, student: str) -> tuple[int, int, int]:
    """Returns how many texts both families spell, their chunks, and how many of these are wrong."""
    learned = tokenizers_of.strings(1_000, seed=2)
    made = [tokenizers_of.tokenizer(name, learned) for name in (teacher, student)]
    tables = [token_bytes(t, name, [t.eos_token_id]) for t, name in zip(made, (teacher, student))]  # noqa: B905
    translator, end = Translator(tables[0], ByteOrder(tables[1], tables[0])), made[0].eos_token_id
    num_texts = num_chunks = num_wrong = 0
    rng = np.random.default_rng(0)
    texts = tokenizers_of.strings(2 * NUM_TEXTS, seed=3)
    rows = [t(texts, add_special_tokens=False)["input_ids"] for t in made]
    for text, theirs, ours in zip(texts, *rows, strict=True):
        parts = [table.of(ids) for table, ids in zip(tables, (theirs, ours), strict=True)]
        if num_texts == NUM_TEXTS:
            break
        if any(part is None or without_lead(part, text) is None for part in parts):
            continue  # it spells out a special token, or is one that NFC changes
        weights = rng.random(len(text.encode()) + 1) + 0.5
        signal = weighed(tables[0], [*theirs, end], text, weights)
        row = encoding.encode("a", [0], [*ours, made[1].eos_token_id])
        (found,), _ = translator.translate([(row, signal, text)])
        pieces = parts[1] or []
        lead = bool(without_lead(pieces, text))
        edges = np.maximum(np.cumsum([0, *map(len, pieces)]) - lead, 0)
        start, num_texts = 0, num_texts + 1
        for at in np.flatnonzero(found.ends_T)[:-1].tolist():
            wanted, u = weights[start : edges[at + 1]].sum(), found.surprisal_T[at]
            num_chunks += 1
            num_wrong += not (math.isnan(u) or abs(u - wanted) < 1e-4 * wanted)
            start = edges[at + 1]
        num_wrong += start != edges[-1] or abs(found.surprisal_T[-1] - weights[-1]) > 1e-4
    return num_texts, num_chunks, int(num_wrong)


def all_chunks() -> list[Measure]:
    """Returns what became of all texts with each family as the teacher of the next."""
    names = sorted(tokenizers_of.FAMILIES)
    pairs = list(zip(names, [*names[1:], names[0]], strict=True))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: in_process("chunks", *pair), pairs))
    for (teacher, student), (num_texts, num_chunks, num_wrong) in zip(pairs, found, strict=True):
        print(
            f"{teacher:28}{student:28}{num_texts:8,} texts"
            f"{num_chunks:10,} chunks{num_wrong:4} wrong"
        )
    least, wrong = min(texts for texts, _, _ in found), sum(wrong for _, _, wrong in found)
    return [
        ("any_teacher.wrong_chunks", wrong, 0, wrong == 0),
        ("any_teacher.texts", least, NUM_TEXTS, least == NUM_TEXTS),
    ]


def translated(num_tokens: int) -> Target:
    """Returns events as texts have them: most are one token, and some are hundreds.

    Of SmolLM2's stored signals a token has 0.6% of DeepSeek's or Claude's vocabulary in its events.
    """
    rng, plain = np.random.default_rng(0), stored(num_tokens, VOCABULARY)
    assert isinstance(plain.ids_NK, Tensor)
    first_NK = np.sort(plain.ids_NK.numpy(), axis=1)
    is_wide_NK = rng.random(first_NK.shape) < 1 / 16
    widths_NK = np.where(is_wide_NK, rng.integers(2, 400, first_NK.shape), 1)
    after_NK = np.concatenate([first_NK[:, 1:], np.full((num_tokens, 1), VOCABULARY)], axis=1)
    end_NK = np.minimum(first_NK + widths_NK, after_NK)
    order_V = torch.from_numpy(rng.permutation(VOCABULARY))
    ends_N = torch.arange(num_tokens) % 2 == 1
    surprisal_N = torch.where(ends_N, 0.5, math.nan)
    return Target(
        plain.labels_N,
        Ranges(torch.from_numpy(first_NK), torch.from_numpy(end_NK), order_V),
        plain.logprobs_NK,
        plain.tail_N,
        chunks=Chunks(surprisal_N, ends_N),
    )


class Body(nn.Module):  # type: ignore[misc]
    """The blocks of a student, without which a step is its losses alone."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(HIDDEN, 9, 1536, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 6, enable_nested_tensor=False)

    def forward(self, inputs_BTH: Tensor) -> Tensor:
        """Returns the last hidden states."""
        hidden_BTH: Tensor = self.blocks(inputs_BTH)
        return hidden_BTH


def step(way: str) -> tuple[float, float]:
    """Returns the least CPU seconds of seven steps, and the peak memory above what was there."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = stored(NUM_TOKENS, VOCABULARY) if way == "own" else translated(NUM_TOKENS)
    terms = [Term("cross_entropy", losses.cross_entropy, 0.2)]
    terms.append(Term("forward_kl", losses.forward_kl, 0.8))
    body, head = Body(), Head(layer(VOCABULARY, HIDDEN), VOCABULARY)
    inputs_BTH = torch.randn(4, NUM_TOKENS // 4, HIDDEN)
    seconds = []
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for _ in range(7):
        started = time.process_time()
        losses_of(body(inputs_BTH).flatten(0, 1), head, target, terms).total_.backward()
        seconds.append(time.process_time() - started)
    return min(seconds), memory("VmHWM") - before


def steps() -> list[Measure]:
    """Returns the cost of a step on a translated signal over one on the student's own tokens."""
    ways = ["own", "translated"] * 3
    found = {way: [tuple(in_process("step", w)) for w in ways if w == way] for way in set(ways)}
    time_ratio, memory_ratio = (
        min(each[at] for each in found["translated"]) / min(each[at] for each in found["own"])
        for at in (0, 1)
    )
    return [
        ("any_teacher.step_time", time_ratio, 1.10, time_ratio <= 1.10),
        ("any_teacher.step_memory", memory_ratio, 1.10, memory_ratio <= 1.10),
    ]


def other_student(folder: Path, role: str, seed: int) -> JobSpec:
    """Returns the quickstart's job for a training of the other student."""
    base = str(folder / "base")
    knobs = {"student": base, "losses": LOSSES[role], "seed": seed, "controls": []}
    return job_of(folder, f"{role}-{seed}", {"train": knobs})


def learned() -> list[Measure]:
    """Returns what the translated signal adds to plain fine-tuning, the mean over seeds."""
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as store:
        folder = Path(store)
        make_base(folder / "base")
        ways = list(itertools.product(SEEDS, LOSSES))
        specs = [other_student(folder, role, seed) for seed, role in ways]
        made_in(store, specs[0], "curate")
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            scores = dict(zip(ways, pool.map(partial(trained, store), specs), strict=True))
    runs: list[Scores] = [{role: scores[seed, role] for role in LOSSES} for seed in SEEDS]
    print(f"{'seed':8}{'learns from':22}accuracy    gain   95% interval")
    for seed, found in zip(SEEDS, runs, strict=True):
        tell(str(seed), [found], "control", "control", "control")
        tell(str(seed), [found], "student", "control", "student")
    gain = tell("pooled", runs, "student", "control", "student")
    of_same = gain["value"] / SAME_TOKENIZER_GAIN
    return [
        ("any_teacher.gain", gain["value"], 0.0, gain["value"] > 0),
        ("any_teacher.gain_low", gain["low"], 0.0, gain["low"] > 0),
        ("any_teacher.share_of_gain", of_same, 0.6, of_same >= 0.6),
    ]


PARTS = {"chunks": chunks_of, "step": step}


def in_process(part: str, *words: str) -> Any:
    """Returns what a part gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.any_teacher", part, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints tables, then one JSON line a measure."""
    if len(sys.argv) > 1:
        part, *words = sys.argv[1:]
        arguments = [int(word) if word.isdecimal() else word for word in words]
        print(json.dumps(PARTS[part](*arguments)))  # type: ignore[operator]
        return
    show([*all_chunks(), *steps(), *learned()])


if __name__ == "__main__":
    main()
