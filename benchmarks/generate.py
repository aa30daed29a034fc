"""What durable capture costs: against vLLM's own batch call, a bare client, and the disk.

`python -m benchmarks.generate [vllm] [http] [echo]` measures all parts, or those named. For vLLM,
`LLM.generate` and Retort each have a process with the model loaded and take turns in short slices.
A figure is the median ratio of tokens a CPU second, which other work on the machine changes little;
tokens a second by the clock are shown beside it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import Measure, http_engine, show
from benchmarks.world import HERE
from retort import processes
from retort.data import encoding
from retort.engines import vllm
from retort.events import SILENT
from retort.jobs.source_digests import source_digests
from retort.spec import JobSpec, build, recipes
from retort.stages import engine_settings
from retort.stages.generate import capture
from retort.stages.prepare import prepare
from retort.stages.stage import Stage, read_examples
from retort.store import Store
from tests.support import zoo

QUESTIONS = HERE / "data"
TOP_K, ECHO_ROWS = 16, 1_000_000


@dataclass(frozen=True)
class Load:
    """What a model is asked in each slice of a round; `limit` is None where every row is asked."""

    model: str
    train: str
    test: str = str(QUESTIONS / "test.jsonl")
    task_type: str = "qa"
    limit: int | None = 400
    max_tokens: int = 64
    rounds: int = 5


def spec_of(engine: str, load: Load, top_k: int = 0) -> JobSpec:
    """Returns a job whose teacher is the model; nothing is judged."""
    return build(
        {
            "name": "benchmark",
            "prepare": {
                "task_type": load.task_type,
                "train": load.train,
                "test": load.test,
                "limit": load.limit,
            },
            "generate": {
                "teacher": load.model,
                "engine": engine,
                "top_k": top_k,
                "max_tokens": load.max_tokens,
                "max_model_len": 512,
                "runtime": {"max_num_seqs": 128, "num_threads": 1},
                "spending": {"pilot_rows": 0},
            },
            "train": {"student": load.model},
        }
    )


def tiny_model(folder: Path) -> Path:
    """Writes a Llama of 2.8 million random weights with a real tokenizer of 600 tokens."""
    tokenizer = zoo.train_tokenizer(zoo.LLAMA)
    config = LlamaConfig(
        vocab_size=zoo.VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepared(spec: JobSpec, folder: Path) -> Stage:
    """Returns the stage generate of a job whose examples are prepared, on a store of its own."""
    store = Store(str(folder))
    made = recipes(spec, source_digests(spec))
    out = store.artifact("prepare", made["prepare"].name)
    stage = Stage("prepare", spec, store, {}, out, SILENT, folder / "log")
    inputs = {"prepare": out.commit({"facts": prepare(stage)})}
    out = store.artifact("generate", made["generate"].name)
    return Stage("generate", spec, store, inputs, out, SILENT, folder / "log")


def vllm_measures(folder: Path, load: Load, name: str = "generate") -> list[Measure]:
    """Ours against vLLM's own call, by turns, each in a process with the model loaded."""
    with _process("raw", folder, load) as raw, _process("ours", folder, load) as ours:
        ways = {
            "LLM.generate": (raw, 0),
            "retort, text": (ours, 0),
            "LLM.generate, logprobs=16": (raw, TOP_K),
            "retort, text + top-16": (ours, TOP_K),
        }
        paces = _paces(ways, load.rounds)
    text, both = paces["retort, text"], paces["retort, text + top-16"]
    return [
        _ratio(f"{name}.text_over_llm_generate", text, paces["LLM.generate"], 0.97),
        _ratio(f"{name}.signal_over_text", both, text, 0.90),
        _ratio(f"{name}.signal_over_vllm", both, paces["LLM.generate, logprobs=16"], 1.0),
    ]


@contextmanager
def _process(side: str, folder: Path, load: Load) -> Iterator["subprocess.Popen[str]"]:
    """Gives a process that measures a slice for each line that it reads; see `slices`."""
    command = [sys.executable, "-m", "benchmarks.generate", "slices", side, str(folder)]
    command.append(json.dumps(asdict(load)))
    # A thread that waits for another one spins: with one, a CPU second is a second of work.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{side}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def slices(side: str, folder: Path, load: Load) -> None:
    """Answers the load's questions for each line of the standard input, "K INDEX": with K = 0 the
    text alone, else with the K most probable ids of each token. Prints what it took as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    run = (_raw if side == "raw" else _ours)(folder, load)
    for line in sys.stdin:
        k, index = map(int, line.split())
        cpu, wall = time.process_time(), time.monotonic()
        tokens = run(k, index)
        taken = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
        print(json.dumps({"tokens": tokens, **taken}), file=out, flush=True)


def _raw(folder: Path, load: Load) -> Callable[[int, int], int]:
    """Returns vLLM's own batch call, on the arguments that ours gives to vLLM."""
    for name, value in vllm.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    spec = spec_of("vllm", load, TOP_K)
    llm = LLM(**vllm.arguments(engine_settings.settings_of(spec, "")))
    stage = prepared(spec, folder / "raw")
    examples = read_examples(stage.input("prepare"), "train")
    tokenizer = llm.get_tokenizer()
    prompts = tokenizer.batch_decode(encoding.render(tokenizer, [e.messages for e in examples]))

    def run(k: int, index: int) -> int:
        llm.reset_prefix_cache()
        parameters = SamplingParams(temperature=0.0, max_tokens=load.max_tokens, logprobs=k or None)
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def _ours(folder: Path, load: Load) -> Callable[[int, int], int]:
    """Returns the capture of a job's answers, from its examples to the finished artifact."""
    specs = {k: spec_of("vllm", load, k) for k in (0, TOP_K)}
    stages = {k: prepared(spec, folder / f"ours-{k}") for k, spec in specs.items()}
    with_signal = engine_settings.settings_of(specs[TOP_K], "")
    opened: Any = vllm.open_engine(with_signal)
    engines = {
        k: vllm.VllmEngine(replace(with_signal, top_k=k), opened._llm_engine) for k in (0, TOP_K)
    }
    module: Any = vllm

    def run(k: int, index: int) -> int:
        store = Store(f"{folder}/{k}-{index}")
        engines[k].forget()
        module.open_engine = lambda settings: engines[k]  # it is open: only the capture counts
        stage = replace(stages[k], store=store, out=store.artifact("generate", "run"))
        facts = capture.capture(stage.arguments(), "benchmark", 128, SILENT)
        return int(facts["num_tokens"])

    return run


def _paces(
    ways: dict[str, tuple["subprocess.Popen[str]", int]], rounds: int
) -> dict[str, list[float]]:
    """Returns the tokens a CPU second of each way in each round, after one that is not counted.

    The order turns from round to round, so that no way always has the same neighbour.
    """
    paces: dict[str, list[float]] = {name: [] for name in ways}
    walls: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(rounds + 1):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            process, k = ways[name]
            assert process.stdin and process.stdout
            print(k, index, file=process.stdin, flush=True)
            taken = json.loads(process.stdout.readline())
            if index:
                paces[name].append(taken["tokens"] / taken["cpu"])
                walls[name].append(taken["tokens"] / taken["wall"])
    for name, found in paces.items():
        cpu, wall = statistics.median(found), statistics.median(walls[name])
        print(f"{name:28} {cpu:8,.0f} tokens a CPU second {wall:8,.0f} tokens/s")
    return paces


def _ratio(name: str, ours: list[float], peers: list[float], target: float) -> Measure:
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    return name, ratio, target, ratio >= target


def echo_rows(arguments: dict[str, Any]) -> None:
    """The capture of a prepared echo job, in a process of its own; prints what it took as JSON."""
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    facts = capture.capture(arguments, "benchmark", 128, SILENT)
    seconds = time.monotonic() - started
    peak = processes.peak_host_memory_bytes()
    print(json.dumps({"seconds": seconds, "above": peak - before, "rows": facts["num_responses"]}))


def echo_measures(folder: Path) -> list[Measure]:
    """A million rows through the test double: what the capture itself costs."""
    with (folder / "train.jsonl").open("w") as stream:
        stream.writelines(_questions())
    model = tiny_model(folder / "model")
    spec = spec_of("echo", Load(str(model), str(folder / "train.jsonl"), limit=None))
    stage = prepared(spec, folder / "store")
    command = [sys.executable, "-m", "benchmarks.generate", "echo-rows"]
    given = json.dumps(stage.arguments())
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"] == ECHO_ROWS
    pace, gib = found["rows"] / found["seconds"], found["above"] / (1 << 30)
    return [
        ("generate.echo_rows_per_second", pace, 10_000, pace >= 10_000),
        ("generate.echo_memory_gib", gib, 1.0, gib <= 1.0),
    ]


def _questions() -> Iterator[str]:
    for index in range(ECHO_ROWS):
        question = f"What is {index} plus {index % 97}, in words?"
        yield json.dumps({"id": f"row-{index}", "question": question}) + "\n"


def main() -> None:
    """Measures the parts that are named, or all."""
    match sys.argv[1:]:
        case ["echo-rows"]:
            echo_rows(json.load(sys.stdin))
        case ["slices", side, place, load]:
            slices(side, Path(place), Load(**json.loads(load)))
        case wanted:
            _measure(wanted or ["vllm", "http", "echo"])


def _measure(wanted: list[str]) -> None:
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
        if "echo" in wanted:
            measures += echo_measures(Path(folder))
        if "http" in wanted:
            measures += http_engine.measures()
        if "vllm" in wanted:
            model = tiny_model(Path(folder) / "model")
            measures += vllm_measures(
                Path(folder), Load(str(model), str(QUESTIONS / "train.jsonl"))
            )
    show(measures)


if __name__ == "__main__":
    main()
