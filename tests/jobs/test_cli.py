"""Each mistake ends in one clear message and the right exit code, before anything is started."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.run import begin_imports
from retort.processes import forks
from retort.processes.disk import open_log
from retort.spec import load
from retort.store import open_store
from tests.conftest import BIN, environment
from tests.support.tiny import save_model, write_job


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    write_job(folder, engine="transformers")
    return folder


@pytest.fixture
def job(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "job")) / "job.yaml"


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs the command in this process; returns its exit code and its one message."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.out == ""
        return int(ended.value.code), said.err

    return run


def rewrite(job: Path, old: str, new: str) -> None:
    text = job.read_text()
    assert old in text
    job.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("engine", "was_begun", "begins"),
    [("transformers", False, True), ("transformers", True, False), ("echo", False, False)],
)
def test_the_teachers_libraries_are_imported_beside_prefect_where_a_job_is_new(
    job, monkeypatch, engine, was_begun, begins
):
    monkeypatch.setattr(forks, "_servers", {})
    monkeypatch.setattr(forks, "GPUS", ())
    spec, _ = load(job, [f"generate.engine={engine}", "generate.top_k=0"])
    store = open_store(str(job.parent / "store"))
    if was_begun:
        with open_log(store.log(spec.name)):
            pass
    begin_imports(spec, store)
    assert len(forks._servers) == begins
    for server in forks._servers.values():
        server.end()


def test_a_misspelt_knob_is_refused_with_the_nearest_name(job, fails):
    code, said = fails("run", job, "--set", "train.lerning_rate=1e-3")
    assert code == 2
    assert "train.lerning_rate: unknown key (did you mean 'learning_rate'?)" in said


def test_a_value_out_of_bounds_is_refused(job, fails):
    code, said = fails("run", job, "--set", "generate.top_p=2")
    assert code == 2
    assert "generate.top_p" in said
    assert "less than or equal to 1" in said


def test_a_missing_job_file(fails, tmp_path):
    code, said = fails("run", tmp_path / "none.yaml")
    assert code == 2
    assert "no job file" in said


def test_a_file_that_is_not_yaml(fails, tmp_path):
    (tmp_path / "job.yaml").write_text("name: [")
    code, said = fails("run", tmp_path / "job.yaml")
    assert code == 2
    assert "not YAML" in said


def test_a_missing_data_file(job, fails):
    code, said = fails("run", job, "--set", "prepare.train=none.jsonl")
    assert code == 2
    assert "prepare.train: no file" in said
    assert "relative to the job file" in said


def test_empty_data(job, fails):
    (job.parent / "empty.jsonl").write_text("")
    code, said = fails("run", job, "--set", "prepare.train=empty.jsonl")
    assert code == 2
    assert "no usable row" in said


def test_rows_that_are_not_json_are_named_by_file_and_line(job, fails):
    (job.parent / "bad.jsonl").write_text("{}\nnot json\n")
    code, said = fails("run", job, "--set", "prepare.train=bad.jsonl")
    assert code == 2
    assert "bad.jsonl:1" in said
    assert "max_bad_ratio" in said


def test_a_model_folder_without_a_tokenizer(job, fails):
    (job.parent / "models/teacher/tokenizer.json").unlink()
    code, said = fails("run", job)
    assert code == 2
    assert "has no tokenizer" in said


def test_a_model_that_is_not_there(job, fails):
    code, said = fails("run", job, "--set", "train.student=./models/none")
    assert code == 2
    assert "train.student: no folder" in said


def test_a_tokenizer_that_changes_the_text_is_refused_where_a_signal_is_asked_for(job, fails):
    settings = job.parent / "models/base/tokenizer.json"
    tokenizer = json.loads(settings.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["\u00e9"] = vocabulary.pop("'")
    settings.write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    code, said = fails("run", job)
    assert code == 2
    assert "base: its tokenizer changes the text ('Hello ' becomes 'hello ')" in said
    assert "top_k: 0" in said


def test_an_unknown_task_type_engine_filter_or_loss_names_what_there_is(job, fails):
    for knob, known in {
        "prepare.task_type=maths": "did you mean 'math'",
        "generate.engine=vlm": "did you mean 'vllm'",
        "curate.filters=[verifyed]": "did you mean 'verified'",
        "train.losses=[{name: forward_lk}]": "did you mean 'forward_kl'",
    }.items():
        code, said = fails("run", job, "--set", knob)
        assert code == 2
        assert known in said


def test_a_store_that_cannot_be_written(job, fails, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = fails("run", job, "--store", tmp_path / "file" / "store")
    assert code == 1
    assert "store:" in said


def test_an_unreachable_store(job, fails, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-must-not-leak")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, said = fails("run", job, "--store", "s3://nowhere/jobs")
    assert code == 1
    assert "store: s3://nowhere" in said
    assert "a-secret" not in said


def test_a_bucket_that_does_not_exist(job, fails, s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    code, said = fails("run", job, "--store", "s3://no-such-bucket/jobs")
    assert code == 1
    assert "s3://no-such-bucket" in said
    assert "bucket" in said


def test_an_unknown_kind_of_store(job, fails):
    code, said = fails("run", job, "--store", "nonsense://bucket")
    assert code == 2
    assert "s3://bucket/prefix" in said


def test_no_room_on_the_disk(job, fails, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    code, said = fails("run", job, "--store", job.parent / "store")
    assert code == 1
    assert "GB free" in said
    assert "--store on another disk" in said


def test_validate_says_what_was_checked_and_what_a_shorthand_became(job, capsys, tmp_path):
    flat = job.parent / "flat.yaml"
    flat.write_text(
        "teacher_model: models/teacher\nstudent_model: models/base\n"
        "training_data: data/train.jsonl\nvalidation_data: data/validation.jsonl\n"
        "task_type: math\nhyperparameters: {learning_rate: 2.0e-5, batch_size: 2, "
        "num_epochs: 3, temperature: 0.7}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(flat), "--store", str(tmp_path / "store")])
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "temperature: 0.7 is generate.temperature" in said
    assert "temperature: 0.7 is also train.losses[1].temperature" in said
    assert "share their token map" in said
    assert not (tmp_path / "store" / "artifacts").exists()


def test_schema_is_the_json_schema_with_a_description_for_every_knob(capsys):
    with pytest.raises(SystemExit):
        main(["schema"])
    schema = json.loads(capsys.readouterr().out)
    for section in schema["$defs"].values():
        for name, knob in section["properties"].items():
            assert "description" in knob or "$ref" in knob, name


def test_a_stage_that_takes_too_long_is_ended_and_a_run_without_a_server_is_known_later(
    job, tmp_path
):
    done = subprocess.run(
        [BIN / "retort", "run", job, "--set", "generate.runtime.timeout_seconds=0.5"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "ran longer than timeout_seconds=0.5" in done.stderr
    assert "Traceback" not in done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / ".retort/prefect/prefect.db")) as database:
        states = database.execute("select name, state_type from task_run order by start_time")
        assert states.fetchall() == [("prepare", "COMPLETED"), ("generate", "FAILED")]


def test_a_crash_in_a_stage_names_its_log(retort, tmp_path):
    job = write_job(tmp_path, engine="echo")
    shutil.rmtree(job.parent / "models/base")
    save_model(job.parent / "models/base")
    weights = job.parent / "models/base/model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    done = retort("run", job, "--store", tmp_path / "s")
    assert done.returncode == 1
    log = done.stderr.strip().rsplit("the log is ", 1)[1]
    assert Path(log).is_file()
    assert "Traceback" not in done.stderr


def test_a_transient_failure_is_tried_again(retort, tmp_path):
    job = write_job(tmp_path, engine="echo")
    (tmp_path / "flaky.py").write_text(
        "from pathlib import Path\n"
        "def once(item):\n"
        f"    marker = Path({str(tmp_path / 'tried')!r})\n"
        "    if not marker.exists():\n"
        "        marker.touch()\n"
        "        raise ConnectionError('the line was cut')\n"
        "    return None\n"
    )
    done = retort(
        "run",
        job,
        "--store",
        tmp_path / "s",
        "--set",
        "curate.filters=['flaky:once']",
        RETORT_PLUG_INS=str(tmp_path),
    )
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr.count("curate: started") == 2


def test_an_interrupt_ends_also_what_was_started_in_the_background_of_a_shell(tmp_path):
    job = write_job(tmp_path, engine="echo")
    waiting = subprocess.Popen(
        [str(BIN / "retort"), "run", str(job), "--store", str(tmp_path / "store")],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        assert any("generate: started" in line for line in waiting.stderr)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(60) == 130
    finally:
        waiting.kill()
