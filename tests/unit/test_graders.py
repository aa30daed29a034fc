"""Graders of OpenAI's Evals: read as the API gives them, and scored as it documents."""

import json
from pathlib import Path

import nltk
import pytest
from nltk.translate.gleu_score import sentence_gleu
from rouge_score.rouge_scorer import RougeScorer

from retort.errors import SpecError
from retort.jobs.source_digests import source_digests
from retort.metrics import form, graders
from retort.metrics.graders import formula, templates
from retort.metrics.graders.grading import Case, chat_of, grade
from retort.records import Example, Response, content_id
from retort.spec import load, recipes

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/job.yaml"
CHECK = {"type": "string_check", "name": "Right", "operation": "eq"}
CHECK |= {"input": "{{sample.output_text}}", "reference": "{{item.truth}}"}
SCORE = {"type": "score_model", "name": "Help", "model": "o3", "range": [1, 7]}
SCORE |= {"input": [{"role": "developer", "content": "Rate {{ sample.output_text }}."}]}
LABEL = {"type": "label_model", "name": "Tone", "model": "o3", "labels": ["kind", "rude"]}
LABEL |= {"passing_labels": ["kind"], "input": [{"role": "user", "content": "{{item.input}}"}]}
TOOL = [{"type": "function", "function": {"name": "pay", "arguments": '{"sum": 3}'}}]

PARTS = ("adj", "adv", "noun", "verb")
WORDNET = ["cntlist.rev", "lexnames", "index.sense"]
WORDNET += [name for part in PARTS for name in (f"index.{part}", f"data.{part}", f"{part}.exc")]


def written(folder: Path, raw: object) -> str:
    path = folder / "graders.json"
    path.write_text(json.dumps(raw))
    return str(path)


def read(folder: Path, *raw: dict) -> list:
    return graders.read(written(folder, list(raw)))


def case(text: str, tool_calls=None, **columns) -> Case:
    chat = [{"role": "user", "content": "Why?"}]
    example = Example("a", "test", chat, expected="so", metadata=columns)
    return Case.of(example, Response("a", text, [], "stop", 1, 1, tool_calls=tool_calls))


@pytest.mark.parametrize(
    ("operation", "text", "truth", "score"),
    [
        ("eq", "Rome", "Rome", 1),
        ("eq", "Rome", "rome", 0),
        ("ne", "Rome", "rome", 1),
        ("ne", "Rome", "Rome", 0),
        ("like", "It is Rome.", "Rome", 1),
        ("like", "It is Rome.", "rome", 0),
        ("like", "Rome", "It is Rome.", 0),  # the input contains the reference, not the reverse
        ("ilike", "IT IS ROME", "rome", 1),
        ("eq", "<think>Hm.</think>Rome", "Rome", 1),
        ("eq", "3.5", 3.5, 1),
    ],
)
def test_a_string_check_compares_as_documented(tmp_path, operation, text, truth, score):
    (grader,) = read(tmp_path, {**CHECK, "operation": operation})
    assert grade(grader, case(text, truth=truth), {}) == score


def test_text_similarity_is_that_of_the_libraries(tmp_path):
    given, wanted = "the cat sat on a mat today", "a cat sat on the mat"

    def score(metric: str, text: str = given) -> float:
        grader = {"type": "text_similarity", "name": metric, "evaluation_metric": metric}
        grader |= {"input": CHECK["input"], "reference": CHECK["reference"]}
        return grade(*read(tmp_path, grader), case(text, truth=wanted), {})

    for n in (1, 2, 3, 4, 5):
        peer = RougeScorer([f"rouge{n}"], use_stemmer=True).score(wanted, given)
        assert score(f"rouge_{n}") == pytest.approx(peer[f"rouge{n}"].fmeasure)
    peer = RougeScorer(["rougeL"], use_stemmer=True).score(wanted, given)
    assert score("rouge_l") == pytest.approx(peer["rougeL"].fmeasure)
    assert score("gleu") == pytest.approx(sentence_gleu([wanted.split()], given.split()))
    # 7 words against 6, of whose n-grams 6, 3, 1 and none match: 1 / (2 * 4) for the none.
    assert score("bleu") == pytest.approx((6 / 7 * 2 / 6 * 1 / 5 * 1 / 8) ** 0.25, rel=1e-6)
    assert score("fuzzy_match", "A CAT sat on the mat!") == 1.0
    assert 0 < score("fuzzy_match") < 1
    assert score("gleu", "") == score("bleu", "") == score("fuzzy_match", "") == 0.0


def test_meteor_needs_wordnet_and_cosine_is_refused_each_with_the_remedy(tmp_path, monkeypatch):
    grader = {**CHECK, "type": "text_similarity", "evaluation_metric": "meteor"}
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(SpecError, match=r"nltk\.downloader wordnet"):
        read(tmp_path, grader)
    wordnet = tmp_path / "corpora/wordnet"
    wordnet.mkdir(parents=True)
    for name in WORDNET:
        (wordnet / name).write_text("00\tadj.all\t3\n" if name == "lexnames" else "")
    (meteor,) = read(tmp_path, grader)
    # Without synonyms: 5 of 6 words match, in 5 chunks, which costs half of their F-mean.
    one = case("the cat sits on a mat", truth="a cat sat on the mat")
    assert grade(meteor, one, {}) == pytest.approx(5 / 6 * 0.5)
    with pytest.raises(SpecError, match="'Right': cosine compares embeddings"):
        read(tmp_path, {**grader, "evaluation_metric": "cosine"})


def test_templates_reach_into_rows_tools_and_json():
    values = {"item": {"a b": [1, {"c": "x"}], "n": 2.0, "o": {"k": None}}}
    values["sample"] = case('{"city": {"name": "Rome"}}', TOOL).sample

    def filled(text: str) -> str:
        return templates.fill(text, values)

    assert filled("{{item.a b[1].c}}-{{ item['a b'][0] }}-{{item.n}}-{{item.o}}") == (
        'x-1-2.0-{"k":null}'
    )
    assert filled("{{sample.output_json.city.name}} {{sample.choices[0].finish_reason}}") == (
        "Rome stop"
    )
    assert filled("{{sample.output_tools[0].function.name}}") == "pay"
    assert filled("no {place} here, {{sample.choices[0].message.tool_calls[0].type}}") == (
        "no {place} here, function"
    )
    for path in ("item.none", "item.a b[2]", "sample.output_tools[1]", "item.n.x"):
        with pytest.raises(templates.MissingError):
            filled(f"{{{{{path}}}}}")


def test_what_a_row_lacks_is_not_scored_and_what_an_answer_lacks_scores_nothing(tmp_path):
    right, city = read(
        tmp_path, CHECK, {**CHECK, "name": "City", "input": "{{sample.output_json.city}}"}
    )
    assert grade(right, case("Rome"), {}) is None
    assert grade(city, case("Rome", truth="Rome"), {}) == 0.0
    assert grade(city, case('{"city": "Rome"}', truth="Rome"), {}) == 1.0
    both = {"type": "multi", "name": "Both", "calculate_output": "right"}
    (multi,) = read(tmp_path, {**both, "graders": {"right": CHECK}})
    assert grade(multi, case("Rome"), {}) is None


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"steps": [], "result": 5.5}', 5.5),
        ('{"result": 2} no, {"result": 3}', 3),
        ('{"result": "4"}', 4),
        ("6", 6),
        ('{"result": 12}', 7),
        ('{"result": -1}', 1),
        ("**4**", 4),
        ("Score: 4.5.", 4.5),
        ('{"result": "Score: 4"}', 4),
        ("4 of 5", 1),
        ("gpt4", 1),
        ("90%", 1),
        ("very good", 1),
        ("nan", 1),
        ("inf", 1),
        ('{"result": 1e999}', 1),
        ('{"result": "\\x"}', 1),
        (None, None),
    ],
)
def test_a_score_is_the_last_result_within_the_range(tmp_path, reply, score):
    (grader,) = read(tmp_path, SCORE)
    asked = case("Rome")
    chat = chat_of(grader, asked)
    assert chat[0] == {"role": "system", "content": "Rate Rome."}
    assert "a number from 1 to 7" in chat[1]["content"] and chat[1]["role"] == "user"
    assert grade(grader, asked, {content_id(chat): reply} if reply else {}) == score
    assert grade(grader, asked, {content_id(chat): chat[1]["content"]}) == 1.0  # an echo


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"result": "kind"}', 1),
        ('{"result": "rude"}', 0),
        (" kind ", 1),
        ("**Kind.**", 1),
        ("Rude!", 0),
        ("kindly", 0),
        ("", 0),
    ],
)
def test_a_label_passes_where_it_is_one_of_the_passing(tmp_path, reply, score):
    (grader,) = read(tmp_path, LABEL)
    asked = case("Rome")
    (turn,) = chat_of(grader, asked)
    assert turn["content"].startswith("Why?\n\n") and '"kind", "rude"' in turn["content"]
    assert grade(grader, asked, {content_id([turn]): reply}) == score


def test_a_label_that_differs_from_another_by_case_alone_is_read_only_as_it_is_written(tmp_path):
    (grader,) = read(tmp_path, {**LABEL, "labels": ["C", "c"], "passing_labels": ["C"]})
    asked = case("Rome")
    key = content_id(chat_of(grader, asked))
    scores = [grade(grader, asked, {key: reply}) for reply in ("C", "c", "C.")]
    assert scores == [1, 0, 0]


def test_a_formula_nested_too_deep_for_the_stack_has_no_value():
    tree = formula.parse("-" * 600 + "a", ["a"])

    def value(depth: int) -> float:
        return value(depth - 1) if depth else formula.value(tree, {"a": 0.5})

    assert (value(0), value(600)) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(a + b) / 2", 0.5),
        ("0.5 * a - -b", 0.75),
        ("2 ^ 3 ^ 2 * a", 256),
        ("min(a, b, 3) + max(a, b)", 1),
        ("abs(-3) + floor(2.7) + ceil(2.1)", 8),
        ("exp(0) + sqrt(9) + log(1)", 4),
        ("a / 0", 0),
        ("log(0)", 0),
        ("9 ^ 9 ^ 9", 0),
        ("(0 - 8) ^ 0.5", 0),
    ],
)
def test_a_formula_is_computed(text, value):
    assert formula.value(formula.parse(text, ["a", "b"]), {"a": 0.5, "b": 0.5}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.real",
        "[a][0]",
        "a if a else a",
        "lambda: 1",
        "min(a, key=b)",
        "sqrt(a, b)",
        "pow(a, 2)",
        "c",
        "'x' * 9",
        "True",
        "a ** 2",
        "a %",
        "(" * 5000 + ")" * 5000,
    ],
)
def test_a_formula_of_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="calculate_output"):
        formula.parse(text, ["a", "b"])


def test_a_multi_combines_scores_as_the_guides_example_does(tmp_path):
    name = {"type": "text_similarity", "name": "n", "evaluation_metric": "fuzzy_match"}
    name |= {"input": "{{sample.output_json.name}}", "reference": "{{item.name}}"}
    mail = {**CHECK, "input": "{{sample.output_json.email}}", "reference": "{{item.email}}"}
    multi = {"type": "multi", "graders": {"name": name, "email": mail}}
    (grader,) = read(tmp_path, {**multi, "calculate_output": "(name + email) / 2"})
    john = {"name": "John Doe", "email": "john@x.org"}
    assert grade(grader, case(json.dumps(john), **john), {}) == 1.0
    other = json.dumps({**john, "email": "jon@x.org"})
    assert grade(grader, case(other, **john), {}) == 0.5
    assert graders.metric_of(grader) == "score.multi"


def test_graders_are_found_in_whatever_the_api_gives(tmp_path):
    held = {"object": "eval", "id": "e", "testing_criteria": [CHECK, SCORE]}
    job = {"id": "ftjob-1", "method": {"type": "reinforcement", "reinforcement": {"grader": LABEL}}}
    for raw, names in (
        (CHECK, ["Right"]),
        ([CHECK, LABEL], ["Right", "Tone"]),
        (held, ["Right", "Help"]),
        ({"object": "list", "data": [held], "has_more": False}, ["Right", "Help"]),
        (job, ["Tone"]),
    ):
        assert [grader.name for grader in graders.read(written(tmp_path, raw))] == names


def test_each_grader_is_a_metric_whose_name_says_how_it_is_shown(tmp_path):
    unit = {**SCORE, "name": "Of one", "range": None}
    found = read(tmp_path, {**CHECK, "name": "Says (it)!", "pass_threshold": 1}, SCORE, unit)
    assert [graders.metric_of(grader) for grader in found] == [
        "grader.Says_it",
        "score.Help",
        "grader.Of_one",
    ]
    assert [form(graders.metric_of(grader)) for grader in found] == ["share", "number", "share"]
    assert graders.deciding(found, "Says (it)!") == graders.deciding(found, "Says_it")
    assert graders.deciding(found, "Says_it.passed") == "grader.Says_it.passed"
    assert graders.deciding(found, "Help") == "score.Help"
    with pytest.raises(SpecError, match=r"no grader 'Helps' .did you mean 'Help'"):
        graders.deciding(found, "Helps")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({**CHECK, "type": "string_chek"}, "unknown type 'string_chek' .did you mean"),
        ({**CHECK, "operation": "gt"}, r"'Right'\.operation: .*'eq', 'ne', 'like' or 'ilike'"),
        ({**CHECK, "input": "{{sample.text}}"}, r"unknown variable \{\{sample.text\}\}"),
        ({**CHECK, "input": "{{row.x}}"}, r"unknown variable \{\{row.x\}\}; write"),
        ({**CHECK, "input": "{{item.x[}}"}, "is no variable"),
        ({**LABEL, "passing_labels": ["nice"]}, "nice: none of the labels"),
        ({**SCORE, "input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_im"),
        ({"type": "multi", "graders": {"a": CHECK}, "calculate_output": "b"}, "b is none of"),
        (
            {"type": "multi", "graders": {"m": {"type": "multi"}}, "calculate_output": "m"},
            "'multi'.graders.m: .*multi",
        ),
        ("text", "a grader is an object"),
        ([], "holds no grader"),
        ([CHECK, {**SCORE, "name": "Right", "range": [0, 1]}], "two graders named Right"),
    ],
)
def test_a_grader_that_cannot_score_is_refused_with_its_place(tmp_path, raw, reason):
    with pytest.raises(SpecError, match=reason):
        graders.read(written(tmp_path, raw))
    (tmp_path / "graders.json").write_text("{")
    with pytest.raises(SpecError, match="is no JSON"):
        graders.read(str(tmp_path / "graders.json"))


def test_the_content_of_graders_names_the_evaluation_and_their_place_does_not(tmp_path):
    def named(folder: str, raw: object, *more: str) -> dict[str, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = written(tmp_path / folder, raw)
        spec, _ = load(QUICKSTART, [f"evaluate.graders.file={path}", *more])
        return {name: recipe.name for name, recipe in recipes(spec, source_digests(spec)).items()}

    one, moved, other = named("a", CHECK), named("b", CHECK), named("a", SCORE)
    assert one == moved
    changed = {"evaluate", "report", "release"}
    assert {name for name in one if one[name] != other[name]} == changed
    decided = named("a", CHECK, "evaluate.graders.main=Right")
    assert {name for name in one if one[name] != decided[name]} == changed
