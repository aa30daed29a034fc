"""One spec, one home for each knob; the fingerprint follows what matters and nothing else."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from pydantic import BaseModel

from retort.data.sources import digest, read
from retort.errors import SpecError
from retort.jobs.preflight import check
from retort.jobs.source_digests import source_digests
from retort.spec import JobSpec, build, load, recipes
from retort.store import open_store
from tests.support.tiny import write_job
from tests.support.zoo import save_family

MINIMAL = {
    "name": "job",
    "prepare": {"train": "a.jsonl", "test": "b.jsonl"},
    "generate": {"teacher": "t"},
    "train": {"student": "s"},
}
FLAT = {
    "teacher_model": "t",
    "student_model": "s",
    "training_data": "a.jsonl",
    "validation_data": "v.jsonl",
    "task_type": "conversation",
    "hyperparameters": {
        "learning_rate": 2e-5,
        "batch_size": 2,
        "num_epochs": 3,
        "temperature": 0.7,
    },
}


def changed(**sections: dict) -> dict:
    return {**MINIMAL, **{k: {**MINIMAL.get(k, {}), **v} for k, v in sections.items()}}


def names(raw: dict) -> dict[str, str]:
    return {stage: recipe.name for stage, recipe in recipes(build(raw), {}).items()}


def test_a_misspelt_key_is_refused_with_the_nearest_name_at_every_depth():
    for raw, hint in [
        (changed(generate={"temprature": 1}), "generate.temprature.*'temperature'"),
        (changed(train={"losses": [{"nam": "x"}]}), r"train\.losses\.0\.nam.*'name'"),
        ({**MINIMAL, "evalute": {}}, "evalute.*'evaluate'"),
        (changed(generate={"runtime": {"devise": "cpu"}}), "devise.*'device'"),
    ]:
        with pytest.raises(SpecError, match=hint):
            build(raw)


def test_every_knob_says_its_unit_and_what_it_does():
    def walk(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                walk(inner)
                continue
            assert field.description, f"{model.__name__}.{name}"
            assert field.json_schema_extra["unit"], f"{model.__name__}.{name}"

    walk(JobSpec)


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        build(MINIMAL).generate.top_k = 3


def test_the_flat_form_is_the_same_spec_in_other_words(tmp_path):
    sectioned = {
        "name": "s-distilled",
        "prepare": {"train": "a.jsonl", "validation": "v.jsonl", "task_type": "conversation"},
        "generate": {"teacher": "t", "temperature": 0.7},
        "train": {
            "student": "s",
            "learning_rate": 2e-5,
            "batch_size": 2,
            "num_epochs": 3,
            "losses": [
                {"name": "cross_entropy", "weight": 0.2},
                {"name": "forward_kl", "weight": 0.8, "temperature": 0.7},
            ],
        },
    }
    assert JobSpec.model_validate(FLAT) == build(sectioned)


def test_an_unknown_flat_key_is_refused():
    with pytest.raises(SpecError, match=r"'teacher_modell'.*did you mean 'teacher_model'"):
        build({**FLAT, "teacher_modell": "x"})


def test_set_overrides_one_knob_and_a_bad_one_is_refused(tmp_path):
    job = write_job(tmp_path, engine="echo")
    assert load(job, ["train.num_epochs=9"])[0].train.num_epochs == 9
    with pytest.raises(SpecError, match=r"section\.key=value"):
        load(job, ["train.num_epochs"])


def test_a_signal_loss_without_a_signal_is_refused():
    with pytest.raises(SpecError, match=r"generate\.top_k is 0"):
        build(changed(generate={"top_k": 0}, train={"losses": [{"name": "forward_kl"}]}))


def test_without_a_signal_the_objective_is_cross_entropy():
    spec = build(changed(generate={"top_k": 0}))
    assert [loss.name for loss in spec.losses] == ["cross_entropy"]
    assert not spec.uses_signal


def test_a_runtime_knob_changes_no_fingerprint():
    before = names(MINIMAL)
    for section in ("generate", "evaluate"):
        assert names(changed(**{section: {"runtime": {"max_num_seqs": 7}}})) == before
    assert names(changed(train={"runtime": {"micro_batch_tokens": 7}})) == before


def test_any_other_knob_changes_its_stage_and_those_that_read_it():
    before, after = names(MINIMAL), names(changed(curate={"min_kept": 2}))
    differing = {stage for stage in before if before[stage] != after[stage]}
    assert differing == {"curate", "train", "evaluate", "report", "release"}


def test_what_only_judges_or_shows_the_measurements_measures_nothing_anew():
    before, gate = names(MINIMAL), {"min_retention": 0.5, "on_bound": ["retention"]}
    prices = {"student": {"price_per_hour": 2}}
    now = names(changed(report={"gate": gate, "prices": prices, "slices": ["topic"]}))
    assert {stage for stage in before if now[stage] != before[stage]} == {"report", "release"}


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"beat_fine_tuning": True}, "add fine_tuning to train.controls"),
        ({"max_cost_per_1000_requests": 1}, "set prices.student.price_per_hour"),
        ({"on_bound": ["memory"]}, "on_bound"),
    ],
)
def test_a_gate_that_could_never_be_judged_is_refused(gate, words):
    with pytest.raises(SpecError, match=words):
        build(changed(report={"gate": gate}))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"train": {"learning_rate": float("inf")}}, "learning_rate: Input should be a finite"),
        ({"generate": {"spending": {"max_cost": float("nan")}}}, "max_cost: Input should be"),
        ({"train": {"losses": [{"name": "forward_kl", "weight": 0}]}}, "every loss has weight 0"),
        ({"train": {"seed": 2**70}}, "seed: Input should be less than or equal to 4294967295"),
        ({"evaluate": {"num_bootstrap": 10**8}}, "less than or equal to 1000000"),
    ],
)
def test_values_that_could_only_fail_late_are_refused(knobs, words):
    with pytest.raises(SpecError, match=words):
        build(changed(**knobs))


def test_a_limit_of_cost_without_a_price_is_refused():
    spending = {"max_cost": 7}
    with pytest.raises(SpecError, match="max_cost: 7 limits nothing while every price is 0"):
        build(changed(generate={"spending": spending}))
    assert build(changed(generate={"spending": {**spending, "price_per_hour": 2}}))


def test_a_metric_that_there_is_not_is_refused_before_a_run(tmp_path):
    spec, _ = load(write_job(tmp_path, "echo"), ["evaluate.metrics=[token_f]"])
    with pytest.raises(SpecError, match="did you mean 'token_f1'"):
        check(spec, open_store(str(tmp_path / "store")))


def test_moving_the_job_its_data_and_models_keeps_every_fingerprint(tmp_path):
    job = write_job(tmp_path / "here", engine="echo", losses=[{"name": "cross_entropy"}])
    spec = load(job)[0]
    before = recipes(spec, source_digests(spec))
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = load(tmp_path / "there/job.yaml")[0]
    assert moved.prepare.train != spec.prepare.train
    assert recipes(moved, source_digests(moved)) == before
    with (tmp_path / "there/data/train.jsonl").open("a") as stream:
        stream.write('{"question": "1 + 1 = ?"}\n')
    assert recipes(moved, source_digests(moved))["prepare"] != before["prepare"]


def test_importing_the_spec_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'prefect', 'mlflow', 'vllm', 'fsspec'}"
    code = f"import sys, retort.spec; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(tmp_path):
    path = write_job(tmp_path, engine="echo")
    with pytest.raises(SpecError, match="give the name of an environment variable") as raised:
        load(path, ["generate.api_key_env=sk-secret-123"])
    assert "sk-secret" not in str(raised.value)
    with pytest.raises(SpecError, match="must not hold credentials"):
        load(path, ["generate.endpoint=http://me:secret@host/v1"])


def test_a_password_in_any_address_of_an_endpoint_is_refused_and_not_repeated(tmp_path):
    judge = {"model": "m", "engine": "openai", "endpoint": "https://jo:hunter2@judge.example/v1"}
    for changes in (
        {"curate": {"second_teacher": judge}},
        {"curate": {"judge": judge}},
        {"evaluate": {"judge": judge}},
    ):
        with pytest.raises(SpecError, match="must not hold credentials") as raised:
            build(MINIMAL | changes)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("value", [-7.5, {"a": 1}, "x", 3])
def test_what_is_no_list_of_filters_is_refused_by_name(tmp_path, value):
    path = write_job(tmp_path, engine="echo")
    with pytest.raises(SpecError, match=r"curate\.filters"):
        load(path, [f"curate.filters={json.dumps(value)}"])


def test_a_section_with_a_mistake_in_it_is_not_repeated_whole():
    endpoint = {"endpoint": "http://me:a-secret@host/v1", "teacher": "t", "engine": "openai"}
    with pytest.raises(SpecError, match="must not hold credentials") as raised:
        build(changed(generate=endpoint))
    assert "a-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"dataset": "org/rows", "splt": "x"}, r"prepare.train.splt: unknown key.*'split'"),
        (["a.jsonl", 3], r"prepare.train.1: Input should be a valid string \(it is 3\)"),
        (5, r"prepare.train: Input should be a valid string \(it is 5\)"),
    ],
)
def test_of_the_forms_of_a_source_only_the_one_that_was_meant_is_spoken_of(train, words):
    with pytest.raises(SpecError, match=words) as raised:
        build(changed(prepare={"train": train}))
    assert len(str(raised.value).splitlines()) == 2


def test_paths_start_at_the_job_file_in_every_form_of_source(tmp_path):
    judge = {"model": "models/judge"}
    remote = {"model": "models/second", "engine": "openai", "endpoint": "http://localhost:1/v1"}
    raw = changed(
        prepare={
            "train": ["a/*.jsonl", "s3://bucket/rows.jsonl", "/b.csv"],
            "validation": {"dataset": "./saved"},
            "test": {"dataset": "org/rows"},
            "decontaminate": {"against": ["bench.jsonl"]},
        },
        curate={"judge": judge, "second_teacher": remote},
    )
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    spec, _ = load(tmp_path / "job.yaml")
    here = str(tmp_path.resolve())
    rows, curated = spec.prepare, spec.curate
    assert rows.train == (f"{here}/a/*.jsonl", "s3://bucket/rows.jsonl", "/b.csv")
    assert (rows.validation.dataset, rows.test.dataset) == (f"{here}/saved", "org/rows")
    assert rows.decontaminate.against == (f"{here}/bench.jsonl",)
    assert curated.judge.model == f"{here}/models/judge"
    assert curated.second_teacher.model == "models/second"


def test_a_mistake_in_the_flat_form_is_named_by_its_own_key():
    hot = {**FLAT["hyperparameters"], "temperature": "hot", "n_epochs": 3}
    with pytest.raises(SpecError, match=r"hyperparameters.n_epochs'.*'num_epochs'"):
        build({**FLAT, "hyperparameters": hot})
    del hot["n_epochs"]
    with pytest.raises(
        SpecError, match=r"hyperparameters.temperature \(generate.temperature\): .*\"hot\""
    ):
        build({**FLAT, "hyperparameters": hot})
    with pytest.raises(SpecError, match=r"hyperparameters must be a mapping .* not a list"):
        build({**FLAT, "hyperparameters": [1]})


def test_a_teacher_of_the_command_line_is_asked_instead_of_the_endpoint(tmp_path):
    raw = changed(
        generate={"engine": "openai", "endpoint": "http://a/v1", "api_key_env": "A", "top_k": 0}
    )
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    local = load(tmp_path / "job.yaml", teacher="org/t")[0].generate
    assert (local.teacher, local.engine, local.endpoint) == ("org/t", "auto", None)
    moved = load(tmp_path / "job.yaml", ["generate.api_key_env=B"], teacher="http://b/v1")[0]
    asked = moved.generate
    assert (asked.teacher, asked.engine, asked.endpoint) == ("t", "openai", "http://b/v1")
    assert asked.api_key_env == "B"
    assert load(tmp_path / "job.yaml", teacher="http://b/v1")[0].generate.api_key_env is None
    path = write_job(tmp_path / "other", engine="transformers")
    assert load(path, teacher="org/t")[0].generate.engine == "transformers"
    assert load(path, teacher="http://b/v1")[0].generate.top_k == 0


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (["generate.n=2"], "set a temperature above 0"),
        (["generate.max_tokens_retry=12"], "must be above max_tokens"),
        (["generate.mode=score", "generate.n=2", "generate.temperature=1"], "set n: 1"),
        (["generate.runtime.retry=[bad]"], "accepted"),
    ],
)
def test_knobs_of_generate_that_do_not_fit_together_are_refused(tmp_path, knobs, words):
    with pytest.raises(SpecError, match=words):
        load(write_job(tmp_path, engine="echo"), knobs)


def test_a_long_rope_teacher_is_bound_to_its_short_length_where_vllm_gives_the_signal(tmp_path):
    teacher = save_family("phi-3-mini-128k", tmp_path)
    write_job(tmp_path, engine="vllm")
    knobs = [f"generate.teacher={teacher}", f"train.student={teacher}"]
    for refused in ("null", "8192"):
        spec, _ = load(tmp_path / "job.yaml", [*knobs, f"generate.max_model_len={refused}"])
        with pytest.raises(SpecError, match="Set it to at most 4096"):
            check(spec, open_store(str(tmp_path / "store")))
    spec, _ = load(tmp_path / "job.yaml", [*knobs, "generate.max_model_len=4096"])
    assert check(spec, open_store(str(tmp_path / "store")))


# Job files


def job_file(folder, text, name="job.yaml"):
    path = folder / name
    path.write_text(text)
    return path


PLAIN = "name: j\nprepare: {train: a.jsonl, test: b.jsonl}\ngenerate: {teacher: t}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {student: s}\ntrain: {student: s}\n", r"'train' is written twice.*lines 4 and 5"),
        ("train:\n  student: s\n  seed: 1\n  seed: 1\n", "'seed' is written twice"),
        ("train: {student: s, lora: {rank: 4, rank: 8}}\n", "'rank' is written twice"),
        ("train: {student: s, num_epochs: yes}\n", "train.num_epochs: .*number.*quotes"),
        ("train: {student: s, learning_rate: on}\n", "train.learning_rate: .*number.*quotes"),
        ("train: {student: s, early_stopping: no}\n", "train.early_stopping: .*number"),
        ("train: {student: s, num_epochs: 1:30}\n", "train.num_epochs: .*integer.*in quotes"),
        ("train: {student: s, learning_rate: 1:30}\n", "train.learning_rate: .*in quotes"),
        ("train: {student: no}\n", "train.student: .*string.*put it in quotes"),
        ("train: {student: 2024-01-02}\n", "train.student: .*put it in quotes"),
        ("train: {student: s, seed: !!int x}\n", "cannot be read"),
        ("train: &t {student: s, more: *t}\n", "an alias stands for a part that holds it"),
        ("train: [" + "[" * 3000, "nested too deeply"),
        (f"train: {{student: s, seed: {'9' * 5000}}}\n", "cannot be read"),
        (f"train: {{student: s, seed: {'x' * 900}}}\n", r"x \.\.\.\)"),
    ],
)
def test_what_yaml_would_take_for_something_else_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(SpecError, match=words):
        load(job_file(tmp_path, PLAIN + text))


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(SpecError, match="more than 100,000 values"):
        load(job_file(tmp_path, "\n".join(lines)))


def test_an_alias_and_a_merge_are_no_key_twice_and_numbers_are_decimal(tmp_path):
    text = "train: {student: s, seed: 017, learning_rate: 1e-3}\n"
    text += "evaluate: {judge: &judge {model: j, max_tokens: 9}}\n"
    text += "curate: {judge: {<<: *judge, max_tokens: 8}}\n"
    spec, _ = load(job_file(tmp_path, PLAIN + text))
    assert (spec.train.seed, spec.train.learning_rate) == (17, 0.001)
    assert (spec.curate.judge.max_tokens, spec.evaluate.judge.max_tokens) == (8, 9)
    assert spec.curate.judge.model == "j"


def test_an_override_changes_one_place_and_not_what_an_alias_names(tmp_path):
    text = "evaluate: {judge: &judge {model: j, runtime: {max_concurrency: 3}}}\n"
    text += "curate: {judge: *judge}\ntrain: {student: s}\n"
    changed = ["evaluate.judge.runtime.max_concurrency=9"]
    spec, _ = load(job_file(tmp_path, PLAIN + text), changed)
    assert spec.evaluate.judge.runtime.max_concurrency == 9
    assert spec.curate.judge.runtime.max_concurrency == 3


def test_a_job_may_be_json_which_is_read_as_json(tmp_path):
    raw = {**MINIMAL, "train": {"student": "s", "learning_rate": 1e-05}}
    text = json.dumps(raw, indent="\t").replace("/", "\\/")
    for name in ("job.json", "job.yaml"):
        spec, _ = load(job_file(tmp_path, text, name))
        assert (spec.name, spec.train.learning_rate) == ("job", 1e-05)
    twice = text.replace('"name"', '"train": {}, "name"')
    for name in ("job.json", "job.yaml"):
        with pytest.raises(SpecError, match="'train' is written twice"):
            load(job_file(tmp_path, twice, name))
    with pytest.raises(SpecError, match=r"job.json is not JSON: line 1, column 2"):
        load(job_file(tmp_path, "{name: j}", "job.json"))
    assert load(job_file(tmp_path, "\ufeff" + text))[0].name == "job"


def test_a_bracket_in_the_name_of_a_folder_is_no_glob(tmp_path):
    folder = tmp_path / "job [v1]"
    (folder / "rows[2]?").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "rows[2]?" / name).write_text('{"question": "q"}\n')
    (folder / "rows2x").mkdir()
    (folder / "rows2x" / "c.jsonl").write_text('{"question": "other"}\n' * 9)
    for train, num_rows in (
        ("rows[2]?/a.jsonl", 1),
        ("rows[2]?", 2),
        ("rows[2]?/*.jsonl", 2),
        ("rows[2]?/[b-z].jsonl", 1),
        ("rows2[w-y]/*.jsonl", 9),
        ("rows2*/*", 9),
    ):
        raw = changed(prepare={"train": train})
        spec, _ = load(job_file(folder, yaml.safe_dump(raw)))
        assert len(list(read(spec.prepare.train, "x", 1000))) == num_rows, train
        assert digest(spec.prepare.train, "x")


@pytest.mark.parametrize("path", ["a\\0b.jsonl", "~nobody-at-all/x.jsonl", "x" * 5000])
def test_a_path_that_cannot_be_one_is_refused_by_name(tmp_path, path):
    text = PLAIN.replace("a.jsonl", f'"{path}"') + "train: {student: s}\n"
    with pytest.raises(SpecError, match="is no path"):
        load(job_file(tmp_path, text))
