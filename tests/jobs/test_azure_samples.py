"""Both samples of the Azure ML job file run unchanged to their report, on models that answer."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.cli import main
from retort.engines import resolve
from retort.stages.stage import read_decisions, read_examples
from retort.store import Folder
from tests.support.answering import save_models
from tests.support.real_data import AZURE, needs_azure
from tests.support.stages import EVERY_STAGE

ANSWER = {"nli": "entailment|neutral|contradiction", "math": r"\d+"}
SMALL = {
    "prepare.limit": 64,
    "generate.max_tokens": 48,
    "generate.spending.price_per_hour": 3600,
    "generate.runtime.num_threads": 1,
    "train.num_epochs": 1,
    "train.max_length": 512,
    "train.runtime.num_threads": 1,
    "evaluate.limit": 8,
    "evaluate.latency_samples": 2,
    "evaluate.rounds": 1,
    "evaluate.likelihood": False,
    "evaluate.num_bootstrap": 200,
    "evaluate.runtime.num_threads": 1,
}
HERE = {"generate.engine": "transformers", "evaluate.engine": "transformers"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), AZURE)


@pytest.fixture
def words(models, tmp_path):
    """The words of a command on a sample with the two models, and what is small of it."""

    def say(verb: str, name: str, *more: str, knobs=HERE) -> list[str]:
        teacher, student = models
        said = [verb, str(AZURE / name / f"distillation_{name}.yaml"), *more]
        said += ["--teacher", str(teacher), "--student", str(student)]
        said += ["--store", str(tmp_path / "store")]
        return [*said, *(f"--set={key}={value}" for key, value in {**SMALL, **knobs}.items())]

    return say


def checked(done: "subprocess.CompletedProcess[str]", name: str) -> dict:
    """The report of a run, after a look at what was learned and what was released."""
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    prepared = Folder(report["artifacts"]["prepare"])
    examples = {e.id: e for e in read_examples(prepared, "train", "validation")}
    assert sum(e.split == "train" for e in examples.values()) == 64
    texts = [d.target_text for d in read_decisions(Folder(report["artifacts"]["curate"])).values()]
    learned = [text for text in texts if text is not None]
    assert len(learned) > 0.9 * len(examples)
    assert all(re.fullmatch(ANSWER[name], text) for text in learned)
    released = Path(report["artifacts"]["release"]) / "model"
    assert (released / "model.safetensors").is_file()
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    (version,) = client.search_model_versions(f"name='llama-{name}-distilled'")
    assert version.source == str(released.parent)
    return report


@needs_azure
def test_the_nli_sample_runs_unchanged_with_the_engine_of_this_machine(words, retort):
    done = retort(*words("run", "nli", "--json", knobs={"evaluate.engine": "transformers"}))
    report = checked(done, "nli")
    facts = Folder(report["artifacts"]["generate"]).manifest()["facts"]
    assert facts["engine"] == resolve("auto", 0)
    assert "prompt_settings.enable_chain_of_thought: true is generate.reasoning" in done.stderr


@needs_azure
def test_the_math_sample_runs_unchanged_and_defect_12_is_evaluated_resumed_and_priced(
    words, retort, capsys
):
    report = checked(retort(*words("run", "math", "--json")), "math")
    for role in ("teacher", "base", "student"):
        assert report["models"][role]["latency_seconds"]["p50"] > 0
        assert report["models"][role]["metrics"]
    spent = Folder(report["artifacts"]["generate"]).manifest()["facts"]["spending"]
    assert spent["cost"] > 0

    def here(*arguments: str) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main(words(*arguments))
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out.splitlines()

    assert [line.split() for line in here("why", "math")] == [[s, "cached"] for s in EVERY_STAGE]
    rejected = [json.loads(line) for line in here("rows", "math", "--rejected", "--json")]
    assert len(rejected) == report["data"]["curate"]["num_rejected"]
    assert all(row["filter"] and row["messages"][-1]["role"] == "assistant" for row in rejected)
