"""The parts of expand: what a reply holds, what is asked in which way, and what counts as new."""

import itertools
import random

import pytest

from retort.errors import SpecError
from retort.records import Example
from retort.spec import Expand, build
from retort.stages.expand.agreement import agreed
from retort.stages.expand.form import Form, Frame
from retort.stages.expand.novelty import Novelty
from retort.stages.expand.replies import texts_in, values_in
from retort.stages.expand.ways import OPERATIONS, Material, Source, first_writings, write_from

TWO = ["Why is the sea salty?", "Name three rivers\nin Peru."]
LISTS = {
    "numbered": "Sure! Here they are:\n\n1. Why is the sea salty?\n2. Name three rivers\nin Peru.",
    "brackets": "1) Why is the sea salty?\n2) Name three rivers\nin Peru.",
    "named": "**Prompt 1:** Why is the sea salty?\n\n**Prompt 2:** Name three rivers\nin Peru.",
    "hyphens": "- Why is the sea salty?\n- Name three rivers\nin Peru.\n",
    "quoted": '1. "Why is the sea salty?"\n2. **Name three rivers\nin Peru.**',
    "labelled": "1. Question: Why is the sea salty?\n2. Prompt: Name three rivers\nin Peru.",
    "json": '["Why is the sea salty?", "Name three rivers\\nin Peru."]',
    "fenced": '```json\n["Why is the sea salty?", "Name three rivers\\nin Peru."]\n```',
    "objects": '[{"task": "Why is the sea salty?"}, {"question": "Name three rivers\\nin Peru."}]',
    "in an object": '{"prompts": ["Why is the sea salty?", "Name three rivers\\nin Peru."]}',
    "after words": 'Here:\n["Why is the sea salty?", "Name three rivers\\nin Peru."] Enjoy!',
    "lines": '{"text": "Why is the sea salty?"}\n{"text": "Name three rivers\\nin Peru."}',
    "thought": "<think>\n1. No?\n</think>1. Why is the sea salty?\n2. Name three rivers\nin Peru.",
    "paragraphs": "Here are two:\n\nWhy is the sea salty?\n\nName three rivers\nin Peru.",
}


@pytest.mark.parametrize("form", LISTS)
def test_a_list_is_read_in_every_form_that_models_write(form):
    assert texts_in(LISTS[form], is_list=True) == TWO


def test_a_single_prompt_is_the_whole_reply_and_a_list_in_it_stays():
    own = "Given the set {1, 2}:\n1. double it\n2. add 3.5"
    for reply in (own, f"#Rewritten Prompt#:\n{own}", f"```\n{own}\n```", f"New prompt: {own}"):
        assert texts_in(reply, is_list=False) == [own]
    assert texts_in('{"prompt": "How far is 3.5 miles?"}', is_list=False) == [
        "How far is 3.5 miles?"
    ]
    assert texts_in("Sort [3, 1, 2].", is_list=False) == ["Sort [3, 1, 2]."]
    assert texts_in("1.5 litres cost 3 euros. And 4?", is_list=True) == [
        "1.5 litres cost 3 euros. And 4?"
    ]


@pytest.mark.parametrize(
    "reply", ["", "  \n", "<think>never ends", "[]", "{}", '{"a": 3}', "1.\n2."]
)
def test_a_reply_without_a_prompt_holds_none_and_fails_nothing(reply):
    assert texts_in(reply, is_list=True) == []


def test_attributes_are_read_from_json_and_from_lines_and_one_value_tells_nothing_apart():
    wanted = {"topic": ["sport", "food"], "length": ["short", "long"]}
    assert (
        values_in('{"topic": ["sport", "food"], "length": ["short", "long"], "x": ["y"]}') == wanted
    )
    assert (
        values_in("- **topic**: sport, food\n- length: short, long\nThat is all I know: x")
        == wanted
    )
    assert values_in("I cannot.") == {}


SOURCES = [Source(f"s{number}", f"How many legs have {number} spiders?") for number in range(30)]
WRITTEN = [Source(f"w{number}", f"What do {number} ants carry?", True) for number in range(5)]


def test_each_way_shows_what_it_says_and_names_its_parents():
    knobs = Expand(to=99, per_request=7, instructions="For a zoo.")
    material = Material({"mood": ["merry", "sad"]}, [("s3", "A keeper of spiders.")])
    sources, texts = [*SOURCES, *WRITTEN], {s.id: s.text for s in (*SOURCES, *WRITTEN)}
    for way in knobs.by:
        made = write_from(knobs, way, "4.2", sources, material)
        assert made == write_from(knobs, way, "4.2", sources, material)
        assert made.text != write_from(knobs, way, "4.3", sources, material).text
        shown = {name for name, text in texts.items() if text in made.text}
        assert shown <= set(made.parents) and made.text.endswith("For a zoo.")
        assert made.num_asked == (1 if way == "evolve" else 7)
        assert ("7 new prompts" in made.text) == (way != "evolve")
    own = write_from(knobs, "self_instruct", "0.0", sources, material)
    assert [sum(name.startswith(kind) for name in own.parents) for kind in "sw"] == [6, 2]
    assert write_from(knobs, "attributes", "0.0", sources, material).detail in (
        "mood: merry",
        "mood: sad",
    )
    person = write_from(knobs, "persona", "0.0", sources, material)
    assert person.parents[0] == "s3" and "A keeper of spiders." in person.text
    evolved = {write_from(knobs, "evolve", f"0.{n}", sources, material).detail for n in range(60)}
    assert evolved == set(OPERATIONS)


def test_attributes_and_persons_are_asked_for_only_where_a_way_needs_them():
    def ids(*by):
        return [made.id.partition("-")[0] for made in first_writings(Expand(to=99, by=by), SOURCES)]

    assert ids("self_instruct", "evolve") == []
    assert ids("attributes") == ["attributes"]
    assert ids("persona") == ["persona"] * 16


def spec_of(task_type="math", **sections):
    prepare = {"task_type": task_type, "train": "t", "test": "t", **sections.pop("prepare", {})}
    return build(
        {
            "name": "j",
            "prepare": prepare,
            "expand": {"to": 99, **sections.pop("expand", {})},
            "generate": {"teacher": "t", "top_k": 0},
            "train": {"student": "s"},
            **sections,
        }
    )


SEEDS = [
    "Mira picks 12 plums and eats 5. How many plums are left?",
    "A train leaves at 9 and arrives at 14. How long does it ride?",
]
HELD_OUT = "Otto bakes 36 rolls and sells them in bags of 4. How many bags does he fill?"


def test_copies_near_copies_siblings_and_held_out_rows_are_refused_each_with_its_reason():
    novelty = Novelty(spec_of(), SEEDS, [HELD_OUT])
    texts = [
        "mira picks 12 plums, and eats 5: how many plums are left",
        "Mira picks 12 plums and then eats 5. How many plums are left?",
        "Mira picks 19 plums and eats 5. How many plums are left?",
        "Otto bakes 36 rolls and sells them in bags of 4; how many bags does he fill?",
        "Please read: Otto bakes 36 rolls and sells them in bags of 4. How many bags does he fill?",
        "Otto bakes 48 rolls and sells them in bags of 6. How many bags does he fill?",
        "Otto bakes 48 rolls and sells them in bags of 6. How many bags does he fill?",
    ]
    assert novelty.refusals(texts) == {
        0: "copy of a training row",
        1: "near copy of a training row",
        3: "copy of a held-out row",
        4: "copy of a held-out row",
        6: "copy of a written prompt",
    }
    novelty.add([texts[2], texts[5]])
    assert novelty.refusals([texts[5], "Who bakes rolls?"]) == {0: "copy of a written prompt"}
    assert novelty.late_refusals() == {}
    # What looked new when little was known is taken out at the end, and may be written again.
    novelty.add(["A near bus.", texts[5].replace("48", "48 fine"), "Who asks for 7 loaves?"])
    assert novelty.late_refusals() == {3: "near copy of another prompt"}
    novelty.drop([3])
    assert novelty.late_refusals() == {}
    assert novelty.refusals(["Who asks for 7 loaves?"]) == {0: "copy of a written prompt"}


def test_a_held_out_problem_that_is_told_of_other_things_is_refused_among_many_like_it():
    asked = "{} has {} {}. {} has {} times as many. How many {} do both have together?"
    things = ("figs", "pens", "cups", "nuts")
    many = [
        asked.format(one, n, what, other, n + 2, what)
        for n, (what, one, other, _) in enumerate(
            itertools.product(things, ("Ada", "Ben"), ("Gina", "Hugo"), range(20)), start=11
        )
    ]
    held_out = asked.format("Jack", 7, "stones", "Kira", 8, "stones")
    retold = [
        asked.format("Jack", 7, "figs", "Kira", 8, "figs"),
        asked.format("Jack", 8, "figs", "Kira", 7, "figs"),
        asked.format("Dora", 7, "figs", "Emil", 8, "figs"),
    ]
    found = Novelty(spec_of(), SEEDS, [held_out]).refusals([*many, *retold])
    assert {place - len(many): reason for place, reason in found.items()} == {
        0: "near copy of a held-out row"
    }


def test_what_the_job_leaves_in_is_refused_all_the_same_and_foreign_files_count(tmp_path):
    (tmp_path / "foreign.jsonl").write_text('{"question": "How many moons has the planet Zog?"}\n')
    knobs = {
        "deduplicate": {"exact": False, "near": False},
        "decontaminate": {"enabled": False, "against": [str(tmp_path / "foreign.jsonl")]},
    }
    novelty = Novelty(spec_of(prepare=knobs), SEEDS, [HELD_OUT])
    found = novelty.refusals([SEEDS[0], HELD_OUT, "How many moons has the planet Zog?", "Who?"])
    assert found == {
        0: "copy of a training row",
        1: "copy of a held-out row",
        2: "copy of a held-out row",
    }


def example(name, text, **more):
    return Example(name, "train", [{"role": "user", "content": text}], **more)


def test_a_template_is_not_shown_to_the_writer_and_is_put_around_its_prompts():
    pair = "Premise: {}\nHypothesis: {}\n\nWhich of the labels fits?\nOne word."
    texts = [pair.format("It rains.", "It is wet."), pair.format("He ran.", "He sat.")]
    frame = Frame.of(texts)
    assert frame.without(texts[0]) == "It rains.\nHypothesis: It is wet."
    whole = pair.format("Dogs bark.", "Dogs sing.")
    assert frame.around("Dogs bark.\nHypothesis: Dogs sing.") == frame.around(whole) == whole
    assert Frame.of(["Who sang?", "Why sing?"]) == Frame.of(["Alone."]) == Frame()


def test_a_new_example_has_the_system_prompt_of_its_parent_and_says_where_it_is_from():
    spec = spec_of("nli", prepare={"labels": ["yes", "no"], "balance": {"by": "metadata.topic"}})
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it on?"}]
    options = {"yes": "yes", "no": "no"}
    parent = Example("p", "train", chat, options=options, metadata={"topic": "lamps", "line": 7})
    form = Form(spec, [parent, example("q", "Is it off?", options=options)])
    origin = write_from(Expand(to=9, by=("evolve",)), "evolve", "0.0", form.seeds[:1], Material())
    made = form.example_of("Is the oven on?", origin)
    assert made.messages == [chat[0], {"role": "user", "content": "Is the oven on?"}]
    assert made.options == options and made.split == "train"
    assert made.metadata == {
        "topic": "lamps",
        "origin": "expanded",
        "way": "evolve",
        "parents": ["p"],
        "detail": origin.detail,
    }


def test_rows_with_several_turns_tools_or_choices_of_their_own_are_no_seeds():
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    rows = [
        Example("turns", "train", turns),
        example("tools", "What now?", tools=[{"type": "function"}]),
        example("choices", "Who?\n\nA. I\nB. You", options={"A": "I", "B": "You"}),
        example("plain", "Who was it?"),
    ]
    assert [seed.id for seed in Form(spec_of("qa"), rows).seeds] == ["plain"]


def test_the_answer_is_expected_on_which_the_teacher_agrees_with_itself():
    one, spec = example("a", "6 * 7 = ?"), spec_of()
    alike = {"a": "It is 42.", "a#1.0": "#### 42.0", "a#2.0": "Answer: 42"}
    outcome = agreed(spec, one, alike)
    assert isinstance(outcome, Example) and outcome.expected == "42"
    assert agreed(spec, one, {**alike, "a#2.0": "43"}) == "the teacher disagrees with itself"
    reason = "the teacher gave no answer that can be verified"
    assert agreed(spec, one, {**alike, "a#1.0": "Who knows?"}) == reason
    assert agreed(spec, one, {"a": "42", "a#1.0": "42"}) == reason


def test_the_spec_refuses_what_cannot_be_written():
    for knobs, message in [
        ({"by": ["magic"]}, "expand.by.0.*'self_instruct', 'attributes', 'evolve' or 'persona'"),
        ({"by": []}, "expand.by"),
        ({"by": ["evolve", "evolve"]}, "twice"),
        ({"samples": 1}, "one answer always agrees"),
        ({"temperature": 0}, "expand.temperature"),
    ]:
        with pytest.raises(SpecError, match=message):
            spec_of(expand=knobs)


def test_replies_of_any_characters_never_fail():
    chosen = random.Random(5)
    for _ in range(300):
        reply = "".join(chosen.choices('[]{}":,\n 1.)-*#`<>/think a\\', k=60))
        for is_list in (True, False):
            assert all(text.strip() == text and text for text in texts_in(reply, is_list))
        values_in(reply)
