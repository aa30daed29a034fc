"""Rows of columns: known ones are recognised, others mapped; each form has a sample."""

import pytest

from retort.data import formats
from retort.data.formats import read_row
from retort.errors import SpecError
from retort.plugins import find_function, function_names
from tests.support.chat_samples import CHATS

LETTERS = {"choice_letters": ["A", "B", "C"], "choices": ["x", "y", "z"]}
COLUMNS = {
    "gsm8k": (
        {"question": "1 + 1?", "answer": "so #### 2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "so #### 2"},
    ),
    "math": (
        {"problem": "1 + 1?", "level": "5", "solution": r"\boxed{2}"},
        "question_answer",
        {"question": "1 + 1?", "answer": r"\boxed{2}", "level": "5"},
    ),
    "metamath": (
        {"query": "1 + 1?", "response": "2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "2"},
    ),
    "squad": (
        {
            "id": "56be",
            "title": "T",
            "context": "It is red.",
            "question": "What is it?",
            "answers": {"text": ["red", "is red"], "answer_start": [6, 3]},
        },
        "question_answer",
        {
            "question": "What is it?",
            "context": "It is red.",
            "answer": ["red", "is red"],
            "title": "T",
        },
    ),
    "unanswerable": (
        {"question": "What?", "passage": "p", "answers": {"text": [], "answer_start": []}},
        "question_answer",
        {"question": "What?", "context": "p"},
    ),
    "mmlu": (
        {"question": "q", "choices": ["x", "y", "z"], "answer": 2},
        "question_answer",
        {"question": "q", "answer": 2, **LETTERS},
    ),
    "arc": (
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        "question_answer",
        {"question": "q", "answer": "2", "choices": ["x", "y"], "choice_letters": ["1", "2"]},
    ),
    "arc's own file": (
        {"question": "q", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]},
        "question_answer",
        {"question": "q", "choices": ["x", "y"], "choice_letters": ["A", "B"]},
    ),
    "medqa": (
        {"question": "q", "options": {"A": "x", "B": "y", "C": "z", "D": None}, "answer": "y"},
        "question_answer",
        {"question": "q", "answer": "y", **LETTERS},
    ),
    "letters": (
        {"question": "q", "A": "x", "B": "y", "C": "z", "D": "", "answer": "C"},
        "question_answer",
        {"question": "q", "answer": "C", **LETTERS},
    ),
    "options": (
        {"question": "q", "option_a": "x", "option_b": "y", "option_c": "z", "label": 0},
        "question_answer",
        {"question": "q", "answer": 0, **LETTERS},
    ),
    "medmcqa": (
        {"question": "q", "opa": "x", "opb": "y", "opc": "z", "answer": 1},
        "question_answer",
        {"question": "q", "answer": 1, **LETTERS},
    ),
    "choices in csv": (
        {"question": "q", "choices": '["x", "y", "z"]', "answer": ""},
        "question_answer",
        {"question": "q", "answer": "", **LETTERS},
    ),
    "openorca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "1 + 1?", "response": "2"},
        "question_answer",
        {"question": "1 + 1?", "answer": "2", "system": "Be brief."},
    ),
    "snli": (
        {"premise": "a", "hypothesis": "b", "label": 1},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": 1},
    ),
    "snli's own file": (
        {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": "neutral"},
    ),
    "pairs": (
        {"text1": "a", "text2": "b", "label": 0},
        "nli",
        {"premise": "a", "hypothesis": "b", "label": 0},
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        "alpaca",
        {"prompt": "Add.\n\n1, 1", "completion": "2"},
    ),
    "alpaca without input": (
        {"instruction": "Add 1, 1.", "input": "", "output": "2"},
        "alpaca",
        {"prompt": "Add 1, 1.", "completion": "2"},
    ),
    "dolly": (
        {"instruction": "Add.", "context": "1, 1", "response": "2", "category": "closed_qa"},
        "alpaca",
        {"prompt": "Add.\n\n1, 1", "completion": "2", "category": "closed_qa"},
    ),
    "completion": (
        {"prompt": "1 + 1 =", "completion": " 2"},
        "prompt_completion",
        {"prompt": "1 + 1 =", "completion": " 2"},
    ),
    "prompt alone": ({"prompt": "1 + 1 ="}, "prompt_completion", {"prompt": "1 + 1 ="}),
    "cnn": (
        {"article": "long", "highlights": "short"},
        "summarization",
        {"article": "long", "summary": "short"},
    ),
    "xsum": (
        {"document": "long", "summary": "short"},
        "summarization",
        {"article": "long", "summary": "short"},
    ),
    "samsum": (
        {"dialogue": "A: hi", "summary": "short"},
        "summarization",
        {"article": "A: hi", "summary": "short"},
    ),
    "billsum": (
        {"text": "long", "summary": "short", "title": "t"},
        "summarization",
        {"article": "long", "summary": "short", "title": "t"},
    ),
    "orca pairs": (
        {"system": "s", "question": "1 + 1?", "chosen": "2", "rejected": "3"},
        "question_answer",
        {"question": "1 + 1?", "answer": "2"},
    ),
    "alpaca pairs": (
        {"instruction": "Add 1, 1.", "input": "", "chosen": [{"from": "gpt", "value": "2"}]},
        "alpaca",
        {"prompt": "Add 1, 1.", "completion": "2"},
    ),
    "no history, no image": (
        {"prompt": "1 + 1 =", "history": "of arithmetic", "images": [], "image": None},
        "prompt_completion",
        {"prompt": "1 + 1 ="},
    ),
    "imdb": ({"text": "good", "label": 1}, "text_label", {"text": "good", "label": 1}),
    "sst2": ({"sentence": "good", "label": 1}, "text_label", {"text": "good", "label": 1}),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_recognised_and_stand_under_our_names_and_their_own(name):
    row, form, fields = COLUMNS[name]
    found, read = read_row(row, "auto", {})
    assert (found, read.messages) == (form, None)
    placed = {"id", "metadata", "tools", "messages"}
    own = {key: value for key, value in row.items() if key not in placed}
    assert read.fields == {**own, **fields}
    assert read_row(row, form, {}) == (form, read)


def test_an_answer_that_its_data_labels_as_bad_is_no_answer():
    for row, name in (
        ({"prompt": "q", "completion": "bad", "label": False}, "completion"),
        ({"prompt": "q", "completion": "bad", "label": "False"}, "completion"),
        ({"instruction": "q", "output": "bad", "kto_tag": False}, "completion"),
        ({"question": "q", "answer": "bad", "label": 0}, "answer"),
        ({"question": "q", "answer": "bad", "label": False}, "answer"),
    ):
        fields = read_row(row, "auto", {})[1].fields
        assert name not in fields
        good = {**row, "label": True} if "label" in row else {**row, "kto_tag": True}
        assert read_row(good, "auto", {})[1].fields[name] == "bad"
    assert read_row({"prompt": "q", "label": False}, "auto", {})[1].fields["label"] is False


def test_columns_are_mapped_and_a_mapped_column_that_is_missing_names_both():
    row = {"Frage": "1 + 1?", "prompt": "no", "answer": "own"}
    form, read = read_row(row, "auto", {"question": "Frage", "answer": "prompt"})
    assert form == "question_answer"
    assert read.fields == {**row, "question": "1 + 1?", "answer": "no"}
    assert read_row({"question": "1 + 1"}, "auto", {"prompt": "question"})[0] == "prompt_completion"
    with pytest.raises(ValueError, match=r"no column 'Antwort'.*as answer; the row has Frage"):
        read_row({"Frage": "1"}, "auto", {"question": "Frage", "answer": "Antwort"})


def test_any_columns_are_read_where_that_is_asked_for():
    row = {"word": "cat", "rhyme": "hat", "id": 7, "metadata": {"a": 1}}
    form, read = read_row(row, "columns", {})
    assert (form, read.id, read.metadata) == ("columns", "7", {"a": 1})
    assert read.fields == {"word": "cat", "rhyme": "hat"}


def test_every_public_function_of_the_module_is_a_form_with_a_sample_here():
    names = function_names("retort.data.formats")
    sampled = {form for _, form, _ in [*CHATS.values(), *COLUMNS.values()]}
    assert sampled == set(names) - {"columns"}
    assert all(
        find_function("format", n, "retort.data.formats") is getattr(formats, n) for n in names
    )
    with pytest.raises(SpecError):
        find_function("format", "read_row", "retort.data.formats")
