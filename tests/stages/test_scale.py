"""What docs/operations.md says of scale: its numbers, jobs and commands; and what vLLM says."""

import os
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from flows.cli import parser
from flows.server_setup import POOLS
from retort import processes
from retort.errors import SpecError
from retort.events import SILENT
from retort.jobs.preflight import check
from retort.spec.load import load
from retort.store import open_store
from tests.operations.test_docker import parsed
from tests.support.child_functions import answered_by
from tests.support.servers import BIN, ROOT, environment
from tests.support.tiny import save_model, write_job

README = (ROOT / "docs/operations.md").read_text()
PROGRAMS = {"export", "python", "prefect", "docker", "kubectl", "ray", "retort"}
TWO = {"tensor_parallel_size": 2}
CHATS = {"a": "12 + 3", "b": "7 * 8 * 9"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def table(*first: str) -> list[list[str]]:
    """The rows of the table whose header begins with these cells, header included."""
    start = README.index(f"| {' | '.join(first)} |")
    lines = README[start:].split("\n\n", maxsplit=1)[0].splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not row[0].startswith("--")]


def computed(formula: str, values: dict[str, float]) -> float:
    return float(eval(formula, {"__builtins__": {}, "ceil": ceil, "max": max, **values}))


def agrees(number: float, text: str) -> bool:
    """Whether a number, rounded as the text is, reads as the text does."""
    return round(number, len(text.partition(".")[2])) == float(text)


@pytest.fixture(scope="module")
def values() -> dict[str, float]:
    """All numbers that the page names, the given ones and those that follow."""
    found = {name: float(value) for name, value, *_ in table("name", "value")[1:]}
    for name, formula, text, _ in table("name", "formula")[1:]:
        found[name] = computed(formula, found)
        assert agrees(found[name], text), f"{name}: {found[name]}, not {text}"
    return found


def test_every_number_of_the_sizing_follows_from_those_that_are_given(values):
    header, _, *machines = table("machine")
    assert len(values) > 40 and len(machines) == 4
    for _, *cells in machines:
        own = dict(values)
        for formula, text in zip(header[1:], cells, strict=True):
            if formula.isidentifier():
                own[formula] = float(text)
            else:
                assert agrees(computed(formula, own), text), (formula, cells)


def test_the_job_of_the_page_is_valid_and_of_the_same_numbers(tmp_path, values):
    part, whole = (yaml.safe_load(text) for text in blocks("yaml"))
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(whole))
    spec, notes = load(path)
    runtime, spending = spec.generate.runtime, spec.generate.spending
    assert not notes and runtime.tensor_parallel_size == values["gpus"]
    assert runtime.max_num_seqs == values["sequences"]
    assert spec.generate.max_model_len == values["length"]
    assert runtime.replica_range == (1, values["nodes"]) and spec.cluster.ray == "auto"
    assert spending.price_per_hour == values["nodes"] * values["gpus"] * values["gpu_price"]
    assert spending.max_cost > values["money"]
    assert spec.train.num_epochs == values["epochs"]
    assert spec.train.runtime.num_processes == values["gpus"]
    for section, knobs in part.items():
        path.write_text(yaml.safe_dump({**whole, section: {**whole[section], **knobs}}))
        changed = getattr(load(path)[0], section).model_dump(mode="json")
        for name, value in {**knobs, **knobs.get("runtime", {})}.items():
            assert {**changed, **changed.get("runtime", {})}[name] == value or name == "runtime"


def test_every_command_of_the_page_is_one():
    lines = [line.split() for block in blocks("bash") for line in block.splitlines()]
    for words in lines:
        options = {word for word in words if word.startswith("--")}
        if words[0] == "python":
            assert options <= options_of(sys.executable, *words[1:3])
        elif words[0] == "prefect":
            names = ["deploy"] if "deploy" in words else words[1:3]
            assert options <= options_of(str(BIN / "prefect"), *names)
        elif words[0] == "ray":
            parsed(words)
        elif words[0] == "retort":
            assert parser().parse_args(words[1:]).command
        for option, value in pairwise(words):
            if option in ("--prefect-file", "--file", "--filename", "--kustomize"):
                assert (ROOT / value).exists()
            elif option == "--pool":
                assert value in POOLS
            elif option == "--target":
                assert f" AS {value}\n" in (ROOT / "docker/Dockerfile").read_text()
    assert {words[0] for words in lines} == PROGRAMS
    shipped = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    patterns = {value for words in lines for option, value in pairwise(words) if option == "--name"}
    named = {pattern.strip("'").removeprefix("*/") for pattern in patterns}  # of every flow
    named |= {
        value for words in lines for option, value in pairwise(words) if option == "--deployment"
    }
    assert named == {"process", "docker", "kubernetes-ray"}
    assert named <= {deployment["name"] for deployment in shipped}


@cache
def options_of(*command: str) -> set[str]:
    """The options that a program's own help names."""
    asked, wide = [*command, "--help"], environment(COLUMNS="200")
    said = subprocess.check_output(asked, env=wide, cwd=ROOT, text=True, timeout=120)
    return set(re.findall(r"--[\w-]+", said))


def settings(model: Path, **runtime: object) -> dict:
    return {
        "model": str(model),
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 4,
        "max_model_len": 64,
        "top_k": 4,
        "dtype": "float32",
        "seed": 0,
        "runtime": {
            "device": "cpu",
            "max_num_seqs": 4,
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "gpu_memory_utilization": 0.5,
            "kv_cache_gib": 1,
            "distributed_executor": "auto",
            **runtime,
        },
    }


def configured(given: dict) -> object:
    """What vLLM itself makes of engine settings; where it refuses them, why."""
    from vllm import EngineArgs

    from retort.engines import Settings
    from retort.engines.vllm import arguments

    try:
        args = EngineArgs(**arguments(Settings(**given)), skip_tokenizer_init=True)
        config = args.create_engine_config()
    except ValueError as error:
        return str(error)
    model, parallel = config.model_config, config.parallel_config
    heads, layers = model.get_num_kv_heads(parallel), model.get_num_layers(parallel)
    return {
        "tensor": parallel.tensor_parallel_size,
        "stages": parallel.pipeline_parallel_size,
        "executor": parallel.distributed_executor_backend,
        "kept": [model.get_head_size() * heads, layers],
    }


def asked_of_vllm(report, cases: dict, answering: list) -> dict:
    """vLLM's own configurations by case, and what it answers with each of some settings."""
    found = {name: configured(given) for name, given in cases.items()}
    return {**found, "answers": [answered_by("vllm", each, CHATS)[1] for each in answering]}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """vLLM's own word on a tiny model and on one of DeepSeek-V3's dimensions, from one process."""
    from transformers import DeepseekV3Config

    if torch.cuda.is_available():
        pytest.skip("the devices asked for here are a CPU's")
    folder = tmp_path_factory.mktemp("vllm")
    tiny = save_model(folder / "tiny")
    large = DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16")
    large.save_pretrained(folder / "large")
    stages = {"pipeline_parallel_size": 2, "distributed_executor": "mp"}
    cases = {
        "two": settings(tiny, **TWO),
        "stages": settings(tiny, **TWO, **stages),
        "ray": settings(tiny, **TWO, distributed_executor="ray"),
        "three": settings(tiny, tensor_parallel_size=3),
        "large": settings(folder / "large", tensor_parallel_size=8),
        "large in stages": settings(folder / "large", tensor_parallel_size=8, **stages),
    }
    return processes.run(
        asked_of_vllm,
        {"cases": cases, "answering": [settings(tiny), settings(tiny, **TWO)]},
        SILENT,
        folder / "log",
        {"timeout_seconds": 600.0, "num_threads": 1},
    )


def test_the_knobs_arrive_in_vllms_own_configuration(found):
    tiny = found["two"]["kept"]
    assert found["two"] == {"tensor": 2, "stages": 1, "executor": "mp", "kept": tiny}
    assert found["stages"] | {"kept": tiny} == found["two"] | {"stages": 2}
    assert found["ray"] == found["two"] | {"executor": "ray"}
    assert "heads (2) must be divisible by tensor parallel size (3)" in found["three"]


def test_the_two_models_are_as_large_as_the_page_says(found, values):
    from transformers import AutoModelForCausalLM, DeepseekV3Config, Phi3Config

    phi = Phi3Config(vocab_size=200064, num_key_value_heads=8, tie_word_embeddings=True)
    phi.update({"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 24})
    phi.update({"intermediate_size": 8192})
    for name, config in (("teacher", DeepseekV3Config()), ("student", phi)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(weight.numel() for weight in model.parameters()) == values[name]
    # What vLLM keeps of a token is the same on every GPU of a machine; a stage has half the layers.
    assert found["large"]["kept"] == [values["latent"], values["layers"]]
    assert found["large in stages"]["kept"] == [values["latent"], ceil(values["layers"] / 2)]


def test_two_devices_give_the_answers_and_the_signal_of_one(found):
    one, two = (each["answers"] for each in found["answers"])
    assert one.keys() == two.keys() == CHATS.keys()
    for key, answer in one.items():
        assert answer["token_ids"] == two[key]["token_ids"] != []
        assert answer["signal"]["ids_TK"] == two[key]["signal"]["ids_TK"]
        pair = (np.array(side["signal"]["logprobs_TK"]) for side in (answer, two[key]))
        np.testing.assert_allclose(*pair, atol=1e-4)


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Checks the tiny job with some knobs set, on a machine where a driver names these GPUs."""
    path = write_job(tmp_path, engine="vllm")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(gpus: int, *knobs: str) -> list[str]:
        command = tmp_path / "nvidia-smi"
        command.write_text("#!/bin/sh\n" + "echo NVIDIA H200\n" * gpus)
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return check(load(path, list(knobs))[0], open_store(str(tmp_path / "store")))

    return run


EACH, OF_ALL = "generate.runtime.tensor_parallel_size", "evaluate.runtime.tensor_parallel_size"
STAGES = "generate.runtime.pipeline_parallel_size"


@pytest.mark.parametrize(
    ("gpus", "knobs", "words"),
    [
        (2, [f"{EACH}=2", f"{STAGES}=2"], r"2 x .* 2 takes 4 GPUs, .* has 2"),
        (8, [f"{EACH}=3"], r"generate.runtime.* must divide the 2 attention heads .*: 1, 2$"),
        (8, [f"{OF_ALL}=2"], r"evaluate.runtime.* the 1 attention heads of train.student"),
        (
            8,
            ["generate.runtime.replicas=2"],
            r"^generate.runtime.replicas: .* set cluster.ray: auto",
        ),
        (8, ["evaluate.runtime.replicas=[1,3]"], r"^evaluate.runtime.replicas: .* or replicas: 1$"),
        (
            8,
            ["train.runtime.num_nodes=2"],
            r"^train.runtime.num_nodes: 2; .* set cluster.ray: auto",
        ),
    ],
)
def test_what_devices_cannot_do_is_said_before_any_is_used(checked, gpus, knobs, words):
    with pytest.raises(SpecError, match=words):
        checked(gpus, *knobs)


def test_gpus_that_a_process_may_not_use_do_not_count(checked, monkeypatch):
    assert "generate.runtime: 2 x 1 devices for each model" in checked(2, f"{EACH}=2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(SpecError, match="this machine has 1 to use"):
        checked(2, f"{EACH}=2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_stages_on_a_cpu_are_refused_and_shared_layers_are_not(checked):
    assert checked(0, f"{EACH}=2")
    with pytest.raises(SpecError, match="build for the CPU fails"):
        checked(0, f"{STAGES}=2")
