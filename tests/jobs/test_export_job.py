"""A job that exports its student: each file is made once, answered by its runtime, compared with
the student, judged, released with its card, and served."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from openai import AuthenticationError, OpenAI

from retort.errors import SpecError
from retort.jobs import serve
from retort.metrics.comparison.shapes import Difference
from retort.records import Response, read_lines
from retort.spec import load
from retort.spec.report import ExportGate
from retort.stages.export.check import check
from retort.stages.export.formats import Student, find_format
from retort.stages.export.writing import compared_tokenizers
from retort.stages.report.gate import judge_export
from retort.store import Folder
from tests.support import command
from tests.support.servers import free_port
from tests.support.tiny import save_model, write_job
from tests.support.zoo import save_family

FORMATS = ["gguf:f32", "gguf:q4_0", "onnx:fp32"]
KNOBS = ["evaluate.likelihood=true", "report.gate.export.max_loss=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A job whose models are of a family of the zoo, with a tokenizer that llama.cpp reads."""
    folder = tmp_path_factory.mktemp("exports")
    path = write_job(folder, engine="transformers")
    for seed, name in enumerate(("teacher", "base")):
        shutil.rmtree(folder / "models" / name)
        save_family("llama-3.1", folder / name, seed=seed).rename(folder / "models" / name)
    return path.parent


@pytest.fixture(scope="module")
def run(home, prefect_url):
    """Runs `retort` on the job, and returns what it said."""

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        sets = [f"--set={knob}" for knob in KNOBS]
        return command.run(
            words[0],
            "job.yaml",
            *sets,
            *words[1:],
            cwd=home,
            timeout=900,
            PREFECT_API_URL=prefect_url,
        )

    return call


@pytest.fixture(scope="module")
def report(run):
    """The report of the job, which exports to two formats, then by `retort export` to a third."""
    formats = f"--set=export.formats={json.dumps(FORMATS[:2])}"
    first = run("run", formats)
    assert first.returncode in (0, 3), first.stderr
    second = run("export", formats, f"--format={FORMATS[2]}", "--json")
    assert second.returncode in (0, 3), second.stderr
    for stage in ("train", "evaluate", "export-gguf-f32", "evaluate-gguf-q4_0"):
        assert f"{stage}: cached" in second.stderr
    return json.loads(second.stdout)


def folder_of(report, name: str) -> Folder:
    return Folder(report["artifacts"][name])


def test_exports_in_32_bits_answer_as_the_student_does_and_smaller_ones_nearly(report):
    exports = report["exports"]
    assert [each["format"] for each in exports.values()] == FORMATS
    for role, most in {"gguf-f32": 1e-5, "onnx-fp32": 1e-5, "gguf-q4_0": 2}.items():
        kl = exports[role]["model"]["metrics"]["kl_to_student"]
        assert -1e-6 < kl["value"] < most
        assert exports[role]["check"]["passed"]
    sizes = {role: each["model"]["weights_bytes"] for role, each in exports.items()}
    assert sizes["gguf-q4_0"] < sizes["gguf-f32"] / 2
    speed = exports["gguf-f32"]["model"]
    assert 0 < speed["first_token_seconds"]["p50"] <= speed["latency_seconds"]["p50"]
    assert speed["tokens_per_second"] > 0 and speed["peak_memory_bytes"] > 0


def test_each_export_is_asked_the_very_prompts_of_the_student(report):
    def prompts(stage: str, role: str) -> dict[str, str]:
        lines = folder_of(report, stage).read(f"answers-{role}.jsonl")
        return {each.id: each.prompt_sha256 for each in read_lines(Response, lines)}

    for role in report["exports"]:
        assert prompts(f"evaluate-{role}", role) == prompts("evaluate", "student")


def test_the_runtimes_tokenizer_was_compared_on_ten_thousand_texts(report):
    facts = folder_of(report, "export-gguf-f32").read_manifest()["facts"]["tokenizer"]
    none = dict.fromkeys(("difference", "own_difference"))
    assert facts == {"is_read": True, "num_texts": 10_000, "num_differing": 0, **none}


def test_a_tokenizer_that_a_runtime_reads_otherwise_is_told_with_the_first_text(tmp_path):
    """Transformers gives every Qwen2 that family's way to part digits, whatever its file says."""
    folder, out = save_family("qwen2.5", tmp_path), tmp_path / "out"
    out.mkdir()
    module, quantization = find_format("gguf:f16")
    module.write(Student(folder), quantization, out)
    found = compared_tokenizers(module, folder, out, ["one", "12 and 345", "two"])
    assert found["is_read"]
    for kind in ("difference", "own_difference"):
        assert found[kind].endswith("other ids than the student's for '12 and 345'")
    assert 1 < found["num_differing"] < found["num_texts"]
    elsewhere = compared_tokenizers(module, folder, out, ["one", "two"])
    assert elsewhere["difference"] and elsewhere["own_difference"] is None
    for policy, passes in (("all_texts", False), ("own_texts", True)):
        gate, facts = ExportGate(tokenizer=policy), {"tokenizer": elsewhere}
        assert judge_export(Difference(0, 0, 0), None, gate, "accuracy", facts).passed == passes


def test_importance_lowered_the_weighted_error(report):
    facts = folder_of(report, "export-gguf-q4_0").read_manifest()["facts"]
    assert 0 < facts["error"] < facts["error_without_importance"]


def test_what_passed_is_released_with_its_card_and_digests_and_named_by_the_version(report):
    release = folder_of(report, "release")
    for each in report["exports"].values():
        place = f"exports/{each['format'].replace(':', '-')}"
        for line in release.read(f"{place}/SHA256SUMS").decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(release.read(f"{place}/{name}")).hexdigest() == digest
        assert each["format"] in release.read(f"{place}/README.md").decode()
    assert b"FROM ./model.gguf" in release.read("exports/gguf-q4_0/Modelfile")
    client = MlflowClient(report["mlflow"]["tracking_uri"])
    version = client.get_model_version("tiny", report["registered"]["version"])
    assert version.tags["retort.exports"] == ", ".join(FORMATS)


def test_an_export_that_loses_more_than_allowed_is_refused_and_the_student_is_not(run, report):
    knobs = ["report.gate.export.max_kl=1e-6", "report.gate.min_retention=0"]
    knobs += ["report.gate.beat_base=false", 'export.formats=["gguf:f32", "gguf:q4_0"]']
    done = run("run", *(f"--set={knob}" for knob in knobs), "--json")
    found = json.loads(done.stdout)
    checks = {role: each["check"] for role, each in found["exports"].items()}
    assert {role: check["passed"] for role, check in checks.items()} == {
        "gguf-f32": True,
        "gguf-q4_0": False,
    }
    assert checks["gguf-q4_0"]["name"] == "kl"
    assert not {"kl", "loss"} & {check["name"] for check in found["gate"]["checks"]}
    assert folder_of(found, "release").read_manifest()["facts"]["exports"] == ["gguf:f32"]


BROKEN = """
QUANTIZATIONS, WEIGHS, ENGINE = ("q",), (), "transformers"


def check(student, quantization):
    pass


def write(student, quantization, out):
    raise RuntimeError("this format has no luck")
"""


def test_a_format_that_fails_ends_no_job_and_is_tried_again(home, run, report):
    (home / "mine").mkdir()
    (home / "mine/broken.py").write_text(BROKEN)
    formats = 'export.formats=["gguf:f32", "mine.broken:q"]'
    for _ in range(2):
        done = run("run", f"--set={formats}", "--json", "--trust")
        found = json.loads(done.stdout)
        assert found["exports"]["gguf-f32"]["check"]["passed"]
        check = found["exports"]["mine-broken-q"]["check"]
        assert not check["passed"] and "this format has no luck" in check["reason"]
        assert "export-mine-broken-q: started" in done.stderr
        assert "export-gguf-f32: cached" in done.stderr


def test_an_export_that_is_killed_says_nothing_of_its_format(home, run, report):
    (home / "mine").mkdir(exist_ok=True)
    kill = "import os, signal\n" + BROKEN.replace(
        'raise RuntimeError("this format has no luck")', "os.kill(os.getpid(), signal.SIGKILL)"
    )
    (home / "mine/killed.py").write_text(kill)
    done = run("run", '--set=export.formats=["mine.killed:q"]', "--json", "--trust")
    assert done.returncode == 1 and "was killed (signal 9)" in done.stderr


def test_a_gguf_is_served_to_a_client_of_openai_with_the_key(report, monkeypatch):
    student = f"{report['artifacts']['release']}/model"
    address = serve.Address("mine", port=free_port())
    monkeypatch.setenv(serve.KEY, "a-key-of-the-test")
    with (
        serve.folder_of(student, "gguf:f32") as folder,
        serve.serving(folder, "gguf:f32", address) as process,
    ):
        chat = [{"role": "user", "content": "7 + 8 = ?"}]
        client = OpenAI(base_url=address.url, api_key="a-key-of-the-test")
        said = client.chat.completions.create(model="mine", messages=chat, max_tokens=4)
        assert said.choices[0].finish_reason in ("stop", "length")
        other = OpenAI(base_url=address.url, api_key="another")
        with pytest.raises(AuthenticationError):
            other.chat.completions.create(model="mine", messages=chat, max_tokens=4)
    assert process.poll() is not None


def test_a_format_that_is_not_there_is_refused_with_those_that_are(report, tmp_path):
    student = f"{report['artifacts']['release']}/model"
    plain = str(save_model(tmp_path / "plain"))
    for folder, form, words in (
        (student, "onnx:int4", "no export onnx:int4 that passed; there are: gguf:f32"),
        (plain, "gguf:f32", "is no release of Retort's"),
    ):
        with pytest.raises(SpecError, match=words), serve.folder_of(folder, form):
            pass


def test_a_family_that_a_format_cannot_express_is_refused_by_name_before_training(tmp_path):
    path = write_job(tmp_path, engine="transformers")
    config = tmp_path / "models/base/config.json"
    raw = json.loads(config.read_text()) | {"model_type": "mamba", "architectures": ["Mamba"]}
    config.write_text(json.dumps(raw))
    for form in ("gguf:q8_0", "onnx:int4"):
        spec, _ = load(path, [f'export.formats=["{form}"]'])
        with pytest.raises(SpecError, match=r"(?i)mamba"):
            check(spec)
