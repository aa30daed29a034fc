"""Several teachers in a spec: what each inherits, what is refused, and what names an artifact."""

import json

import pytest
import yaml

from retort.errors import SpecError
from retort.spec import JobSpec, Judge, build, load, recipes
from retort.stages.judge import as_teacher

DIGESTS = {
    **{f"generate.teachers.{name}": f"content of {name}" for name in "abc"},
    **{f"generate.engines.{name}": "echo" for name in "abc"},
    "generate.teacher": "content of a",
    "generate.engine": "echo",
}


def spec(route="agreement", names="ab", train=(), **generate) -> JobSpec:
    teachers = {name: {"teacher": f"models/{name}"} for name in names}
    return build(
        {
            "name": "j",
            "prepare": {"train": "x.jsonl", "test": "x.jsonl"},
            "generate": {"top_k": 0, "teachers": teachers, "route": route, **generate},
            "train": {"student": "s", **dict(train)},
        }
    )


def names(job: JobSpec) -> dict[str, str]:
    return {name: recipe.name for name, recipe in recipes(job, DIGESTS).items()}


def test_a_teacher_has_the_sections_knobs_where_it_sets_none_and_the_first_is_the_teacher():
    own = {"teacher": "gpt", "engine": "openai", "endpoint": "https://host/v1", "runtime": {}}
    own["spending"] = {"price_per_hour": 2.0}
    shared = {"engine": "echo", "spending": {"pilot_rows": 3}, "runtime": {"max_num_seqs": 5}}
    job = spec(**shared, teachers={"far": own, "near": {"teacher": "m"}})
    far, near = (job.generate.teachers[name] for name in ("far", "near"))
    assert (far.engine, near.engine) == ("openai", "echo")
    assert (far.endpoint, near.endpoint) == ("https://host/v1", None)
    assert (far.spending.pilot_rows, far.spending.price_per_hour) == (3, 2.0)
    assert near.runtime.max_num_seqs == far.runtime.max_num_seqs == 5
    assert (job.generate.teacher, job.generate.engine) == ("gpt", "openai")
    other = job.taught_by("near")
    assert (other.generate.teacher, other.generate.engine) == ("m", "echo")
    for each in (job, other):
        assert JobSpec.model_validate(json.loads(each.model_dump_json())) == each


def test_a_key_stays_with_its_endpoint_and_an_endpoint_with_its_engine(tmp_path):
    (tmp_path / "own").mkdir()
    address = {"engine": "openai", "endpoint": "https://ours/v1", "api_key_env": "OUR_KEY"}
    given = {
        "same": {"teacher": "m", "engine": "openai"},
        "elsewhere": {"teacher": "m", "endpoint": "https://theirs/v1"},
        "keyed": {"teacher": "m", "endpoint": "https://theirs/v1", "api_key_env": "THEIR_KEY"},
        "local": {"teacher": "own", "engine": "transformers"},
    }
    ours, theirs = "https://ours/v1", "https://theirs/v1"
    wanted = {
        "same": ("openai", ours, "OUR_KEY", "m"),
        "elsewhere": ("openai", theirs, None, "m"),
        "keyed": ("openai", theirs, "THEIR_KEY", "m"),
        "local": ("transformers", None, None, str((tmp_path / "own").resolve())),
    }
    raw = spec(**address, teachers=given).model_dump(mode="json")
    raw["generate"] = {"top_k": 0, "teachers": given, "route": "agreement", **address}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    found = load(tmp_path / "job.yaml")[0].generate.teachers
    assert wanted == {
        name: (own.engine, own.endpoint, own.api_key_env, own.teacher)
        for name, own in found.items()
    }
    plain = spec(**address, teachers=given).generate.teachers
    assert all(plain[name].api_key_env == key for name, (_, _, key, _) in wanted.items())


def test_one_teacher_at_most_is_live():
    live = {"teacher": "live", "losses": [{"name": "forward_kl"}]}
    with pytest.raises(SpecError, match=r"train\.teacher: live .* has a, b; set train\.teacher"):
        spec(train=live)
    assert spec(names="a", train=live).is_live
    plain = {**live, "losses": [{"name": "cross_entropy"}]}
    assert not spec(train=plain).is_live


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"teacher": "other"}, "teacher and teachers exclude each other"),
        ({"route": None}, "teachers needs a route"),
        ({"teachers": {}, "teacher": "m"}, "route is for several teachers"),
        ({"route": "best"}, "generate.route.by"),
        ({"route": {"by": "metadata.t", "default": "c"}}, "default names c, .* has a, b"),
        ({"route": {"by": "metadata.t", "to": {"x": "c"}}}, "to names c"),
        ({"route": {"by": "agreement", "default": "a"}}, "to and default are for a route by"),
        ({"route": {"by": "agreement", "weights": {"a": 1}}}, "fusion and weights are for"),
        (
            {"route": {"by": "all", "weights": {"a": 0, "b": 0}}, "top_k": 4},
            "weights are 0 for every teacher.* at least one of a, b a weight above 0",
        ),
        ({"route": {"by": "agreement", "order": ["a"]}}, "order must name each of a, b once"),
        ({"route": "all"}, "needs n: 1 and a top_k"),
        ({"route": {"by": "agreement", "order": 5}}, "order must name each of a, b once"),
        ({"route": {"by": "agreement", "order": [["a"], 1]}}, "order must name each of a, b"),
        ({"teachers": {"a": 3, "b": {"teacher": "m"}}}, r"teachers\.a must be a name with a sec"),
        ({"teachers": {"a": None}}, r"teachers\.a must be a name with a section .* NoneType"),
        ({"teachers": {7: {"teacher": "m"}}}, r"teachers\.7 must be a name with a section"),
        ({"route": "best_judged"}, "best_judged needs curate.judge"),
        ({"teachers": {"A-b": {"teacher": "m"}}}, "should match pattern"),
        ({"teachers": {"a": {"teacher": "m", "engin": "x"}}}, "did you mean 'engine'"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(knobs, words):
    with pytest.raises(SpecError, match=words):
        spec(**knobs)


def test_a_further_teacher_names_anew_the_union_and_what_reads_it_alone():
    before, after = names(spec()), names(spec(names="abc"))
    same = {name for name in before if before[name] == after[name]}
    assert same == {"prepare", "generate-a", "generate-b"}
    assert set(after) - set(before) == {"generate-c"}


def test_by_metadata_only_a_teacher_whose_values_change_is_made_anew():
    by = {"by": "metadata.t", "default": "b"}
    before = names(spec({**by, "to": {"x": "a"}}))
    after = names(spec({**by, "to": {"x": "a", "y": "c"}}, names="abc"))
    assert before["generate-a"] == after["generate-a"]
    assert before["generate-b"] != after["generate-b"]
    prices = names(spec({**by, "to": {"x": "a"}}, spending={"pilot_rows": 1}))
    assert prices == before


def test_a_control_without_a_teacher_is_a_training_of_the_student_on_fewer_rows():
    by = {"by": "metadata.t", "default": "b"}
    student, control = spec(by, train={"seed": 1}), spec(by, train={"controls": ["without_b"]})
    assert control.controls == ("without_b",)
    made, plain = recipes(control, DIGESTS), recipes(student, DIGESTS)
    knobs = made["train-without_b"].ingredients["knobs"]
    assert knobs == {**made["train"].ingredients["knobs"], "without_teacher": "b"}
    assert "without_teacher" not in plain["train"].ingredients["knobs"]
    with pytest.raises(SpecError, match=r"without_c is no control \(did you mean 'without_b'"):
        spec(by, train={"controls": ["without_c"]})
    with pytest.raises(SpecError, match=r"allowed: fine_tuning, gold, random_start$"):
        spec("all", top_k=4, train={"controls": ["without_a"]})


def test_a_judge_is_asked_in_a_job_that_has_no_other_teachers():
    job = spec({"by": "metadata.t", "default": "b"}, train={"controls": ["without_b"]})
    for own in (job, job.control("without_b")):
        alone = as_teacher(own, Judge(model="m", engine="echo"))
        assert JobSpec.model_validate(json.loads(alone.model_dump_json())) == alone
        assert (alone.generate.teacher, alone.generate.teachers) == ("m", {})


def test_a_teacher_is_named_as_the_catalogue_has_it(tmp_path):
    teachers = {"far": {"teacher": "gpt-4o"}, "near": {"teacher": "./near"}}
    raw = {
        "name": "j",
        "prepare": {"train": "x.jsonl", "test": "x.jsonl"},
        "generate": {"teachers": teachers, "route": "agreement"},
        "train": {"student": "./s"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    job, notes = load(tmp_path / "job.yaml")
    assert job.generate.teachers["far"].engine == "openai" and job.generate.top_k == 0
    assert any("gpt-4o" in note for note in notes)
