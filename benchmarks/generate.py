"""What durable capture costs: against vLLM's own batch call, a bare client, and the disk.

`python -m benchmarks.generate [vllm] [http] [echo]` measures all parts, or those named. Peers run
in turn with ours in one process on one loaded model; a figure is the median of five ratios.
"""

import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import Measure, http_engine, show
from retort.data import encoding
from retort.events import SILENT
from retort.jobs.source_digests import source_digests
from retort.spec import JobSpec, build, recipes
from retort.stages import engine_settings
from retort.stages.generate import capture
from retort.stages.prepare import prepare
from retort.stages.stage import Stage, read_examples
from retort.store import Store
from tests.support import zoo

QUESTIONS = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "data"
ROUNDS, ROWS, MAX_TOKENS, TOP_K, ECHO_ROWS = 5, 2000, 64, 16, 1_000_000


def spec_of(engine: str, model: Path, train: Path, top_k: int = 0) -> JobSpec:
    """Returns a job whose teacher is the tiny model; nothing is judged."""
    return build(
        {
            "name": "benchmark",
            "prepare": {
                "task_type": "qa",
                "train": str(train),
                "test": str(QUESTIONS / "test.jsonl"),
                "limit": ROWS if engine == "vllm" else None,
            },
            "generate": {
                "teacher": str(model),
                "engine": engine,
                "top_k": top_k,
                "max_tokens": MAX_TOKENS,
                "max_model_len": 512,
                "runtime": {"max_num_seqs": 128, "num_threads": 1},
                "spending": {"pilot_rows": 0},
            },
            "train": {"student": str(model)},
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


def durable(stage: Stage, engine: Any) -> tuple[int, float]:
    """Returns the tokens of the job's answers, and the seconds until all stand in the artifact."""
    module: Any = engine_settings.engine_of(stage.spec)
    module.open_engine = lambda settings: engine  # it is open: only the capture is measured
    started = time.monotonic()
    facts = capture.capture(stage.arguments(), "benchmark", 128, SILENT)
    return facts["num_tokens"], time.monotonic() - started


def vllm_measures(folder: Path) -> list[Measure]:
    """Ours against vLLM's own call, on one loaded model."""
    from vllm import SamplingParams

    model, train = tiny_model(folder / "model"), QUESTIONS / "train.jsonl"
    specs = {k: spec_of("vllm", model, train, k) for k in (0, TOP_K)}
    stages = {k: prepared(spec, folder / str(k)) for k, spec in specs.items()}
    settings = engine_settings.settings_of(specs[TOP_K], "")
    engine: Any = engine_settings.engine_of(specs[TOP_K]).open_engine(settings)
    plain = copy.copy(engine)
    plain._settings = replace(settings, top_k=0)
    plain._parameters = engine._parameters.clone()
    plain._parameters.logprobs, plain._made = None, {}
    llm, tokenizer = engine._llm, engine._tokenizer
    examples = read_examples(stages[0].input("prepare"), "train")
    prompts = tokenizer.batch_decode(encoding.render(tokenizer, [e.messages for e in examples]))

    def peer(logprobs: int | None, prompts: list[str]) -> Callable[[int], tuple[int, float]]:
        def run(index: int) -> tuple[int, float]:
            parameters = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=logprobs)
            started = time.monotonic()
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            seconds = time.monotonic() - started
            return sum(len(o.outputs[0].token_ids) for o in outputs), seconds

        return run

    def ours(k: int, opened: Any) -> Callable[[int], tuple[int, float]]:
        def run(index: int) -> tuple[int, float]:
            store = Store(f"{folder}/{k}-{index}")
            out = store.artifact("generate", "run")
            return durable(replace(stages[k], store=store, out=out), opened)

        return run

    ways = {
        "LLM.generate": peer(None, prompts),
        "retort, text": ours(0, plain),
        "retort, text + top-16": ours(TOP_K, engine),
        "LLM.generate, logprobs=16": peer(TOP_K, prompts[: ROWS // 8]),
    }
    paces = _paces(ways, llm.reset_prefix_cache)
    text, both = paces["retort, text"], paces["retort, text + top-16"]
    return [
        _ratio("generate.text_over_llm_generate", text, paces["LLM.generate"], 0.97),
        _ratio("generate.signal_over_text", both, text, 0.90),
        _ratio("generate.signal_over_vllm", both, paces["LLM.generate, logprobs=16"], 6.0),
    ]


def _paces(
    ways: dict[str, Callable[[int], tuple[int, float]]], reset: Callable[[], Any]
) -> dict[str, list[float]]:
    """Returns the tokens a second of each way in each round, after one round that is not counted.

    The order turns from round to round, so that no way always has the same neighbour.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(ROUNDS + 1):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            reset()
            tokens, seconds = ways[name](index)
            if index:
                found[name].append(tokens / seconds)
    for name, paces in found.items():
        print(f"{name:28} {statistics.median(paces):10,.0f} tokens/s")
    return found


def _ratio(name: str, ours: list[float], peers: list[float], target: float) -> Measure:
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    return name, ratio, target, ratio >= target


def echo_rows(arguments: dict[str, Any]) -> None:
    """The capture of a prepared echo job, in a process of its own; prints what it took as JSON."""
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    facts = capture.capture(arguments, "benchmark", 128, SILENT)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "above": peak - before, "rows": facts["num_responses"]}))


def echo_measures(folder: Path) -> list[Measure]:
    """A million rows through the test double: what the capture itself costs."""
    with (folder / "train.jsonl").open("w") as stream:
        stream.writelines(_questions())
    spec = spec_of("echo", tiny_model(folder / "model"), folder / "train.jsonl")
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
    if sys.argv[1:2] == ["echo-rows"]:
        echo_rows(json.load(sys.stdin))
        return
    wanted = sys.argv[1:] or ["vllm", "http", "echo"]
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
        if "echo" in wanted:
            measures += echo_measures(Path(folder))
        if "http" in wanted:
            measures += http_engine.measures()
        if "vllm" in wanted:
            measures += vllm_measures(Path(folder))
    show(measures)


if __name__ == "__main__":
    main()
