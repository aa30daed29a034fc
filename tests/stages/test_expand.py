"""expand: from six prompts to many, through the ledger, without a held-out row among them."""

import json
import multiprocessing
from collections import Counter
from dataclasses import dataclass

import pytest

from retort.data.duplicates import Texts, find_duplicates, find_leaks
from retort.errors import DataError, SpecError, StageError
from retort.events import Reporter
from retort.records import Quarantined, chat_text, read_lines
from retort.spec import build, recipes
from retort.spec.prepare import Decontaminate, Deduplicate
from retort.stages.expand.check import check
from retort.stages.stage import read_examples
from retort.store import Folder
from tests.support.misbehaving import SECRET, endpoint
from tests.support.tiny import save_model
from tests.support.writing import Model, job, run, run_and_die


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("student"), hidden=32, layers=1)


@dataclass
class Ran:
    """A job from six prompts to sixty that ran once, and what its model was asked."""

    raw: dict
    store: str
    model: Model
    facts: dict
    made: Folder
    notes: list

    @property
    def train(self) -> dict[str, bytes]:
        return files_of(self.made)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, student):
    """The endpoint answers until all tests have run."""
    folder, model, notes = tmp_path_factory.mktemp("ran"), Model(), []
    with pytest.MonkeyPatch.context() as patch, endpoint(model.behave) as (_, url):
        patch.setenv("OPENAI_API_KEY", SECRET)
        raw = made_of(folder, url, student)
        yield Ran(
            raw,
            str(folder / "store"),
            model,
            *run(raw, str(folder / "store"), Reporter(notes.append)),
            notes,
        )


def files_of(made):
    return {name: made.read(name) for name in made.files() if name != "manifest.json"}


def made_of(folder, url, student, **knobs):
    return {**job(folder, url, **knobs), "train": {"student": str(student)}}


def texts_of(examples):
    return [chat_text(example.messages) for example in examples]


def gathered(texts):
    found = Texts()
    for text in texts:
        found.add(text)
    return found


def test_prompts_grow_to_the_number_none_repeats_and_each_says_where_it_is_from(ran):
    facts, made = ran.facts, ran.made
    train, held_out = read_examples(made, "train"), read_examples(made, "validation", "test")
    assert len(train) == facts["num_examples"]["train"] == 60
    assert [example.id for example in train[:6]] == [f"train-{n}" for n in range(6)]
    new, ids = train[6:], {example.id for example in train}
    assert len(ids) == 60 and {example.metadata["origin"] for example in new} == {"expanded"}
    ways = Counter(example.metadata["way"] for example in new)
    assert set(ways) == {"self_instruct", "attributes", "evolve", "persona"}
    assert all(parent in ids for e in new for parent in e.metadata["parents"])
    assert len(held_out) == 12 and not any("origin" in e.metadata for e in held_out)
    for example in new:
        numbers = [
            int(word.strip(".,?")) for word in texts_of([example])[0].split() if word[0].isdigit()
        ]
        assert example.expected == str(sum(numbers))
    texts = gathered(texts_of(train))
    assert find_leaks(texts, gathered(texts_of(held_out)), Decontaminate(), True) == []
    assert find_duplicates(texts, Deduplicate()) == []
    refused = [row for row in read_lines(Quarantined, made.read("quarantine.jsonl"))]
    reasons = Counter(row.reason for row in refused)
    assert facts["num_quarantined"] == len(refused) and facts["quarantine_reasons"] == reasons
    assert reasons["copy of a training row"] > 3
    row = next(row for row in refused if row.reason == "the teacher disagrees with itself")
    assert row.file.startswith("expanded/") and "moon" in json.loads(row.raw)["prompt"]
    assert facts["num_rows"]["train"] == 60 + len(refused)
    assert (
        facts["expanded"]["num_kept"] == ways and facts["expanded"]["ended"] == "there are enough"
    )
    assert any("6 prompts are 60 now" in note.get("text", "") for note in ran.notes)


def test_the_same_ledger_gives_the_same_prompts_and_a_changed_bound_asks_nothing(ran):
    was, asked = files_of(ran.made), ran.model.asked.total()
    ran.made.clear()
    assert files_of(run(ran.raw, ran.store)[1]) == was
    more = {**ran.raw, "expand": {**ran.raw["expand"], "min_new": 0.21}}
    assert files_of(run(more, ran.store)[1]) == was
    assert ran.model.asked.total() == asked


def test_a_killed_run_asks_nothing_twice_and_makes_the_same(ran, tmp_path):
    store, before = str(tmp_path / "killed"), ran.model.asked.copy()
    for after in (6, 2):  # in the midst of a batch of the writer's, then at what is missing
        child = multiprocessing.get_context("fork").Process(
            target=run_and_die, args=(ran.raw, store, after)
        )
        child.start()
        child.join(120)
        assert child.exitcode == -9
    assert 0 < (ran.model.asked - before).total() < before.total()
    assert files_of(run(ran.raw, store)[1]) == files_of(ran.made)
    # At each kill up to four requests are under way, whose answers nobody has.
    assert before.total() <= (ran.model.asked - before).total() <= before.total() + 8


def test_a_writer_that_repeats_itself_ends_the_stage_which_says_so(tmp_path, student):
    model, notes = Model(endless=False), []
    with endpoint(model.behave) as (_, url):
        raw = made_of(
            tmp_path, url, student, expand={"to": 500, "by": ["self_instruct"], "samples": 0}
        )
        facts, made = run(raw, str(tmp_path / "store"), Reporter(notes.append))
    kept = len(read_examples(made, "train"))
    assert 6 < kept < 100 and facts["num_examples"]["train"] == kept
    assert "expand.min_new is 0.2" in facts["expanded"]["ended"]
    shares = facts["expanded"]["shares_usable"]
    assert shares[-1] < 0.2 and all(share >= 0.2 for share in shares[:-1])
    assert any("stopped, for" in note.get("text", "") for note in notes)


def test_the_budget_of_teacher_and_writer_ends_a_run_and_what_was_paid_is_kept(tmp_path, student):
    model, paid = Model(), {"price_per_million_output_tokens": 1e6, "max_cost": 200.0}
    with endpoint(model.behave) as (_, url):
        writer = {"model": "w", "engine": "openai", "endpoint": url, "max_tokens": 64}
        limited = {"to": 20, "writer": {**writer, "spending": paid}}
        raw = made_of(tmp_path, url, student, expand=limited)
        with pytest.raises(StageError, match=r"expand\.writer\.spending.max_cost: 200"):
            run(raw, str(tmp_path / "store"))
        asked = model.asked.copy()
        raw["expand"]["writer"]["spending"]["max_cost"] = 1e6
        facts, _ = run(raw, str(tmp_path / "store"))
    assert facts["num_examples"]["train"] == 20
    assert all(model.asked[text] == 1 for text in asked)
    spent = facts["expanded"]["spending"]
    assert spent["expand.writer"]["cost"] == spent["expand.writer"]["output_tokens"] > 200
    assert spent["generate"]["cost"] == 0 and spent["generate"]["output_tokens"] >= 84


def test_what_could_not_be_reached_is_asked_once_a_run_and_again_by_the_next(tmp_path, student):
    model = Model()
    with endpoint(model.behave) as (_, url):
        raw = made_of(tmp_path, url, student, expand={"to": 60, "samples": 0, "by": ["evolve"]})
        model.is_away = True
        facts, made = run(raw, str(tmp_path / "store"))
        assert facts["num_unreached"] > 3 and facts["expanded"]["num_batches"] > 1
        assert set(model.asked.values()) == {1}
        failed = {text for text in model.asked if sum(text.encode()) % 3 == 0}
        answered = {*model.asked} - failed
        assert facts["num_unreached"] == len(failed) == facts["expanded"]["num_empty_replies"]
        model.is_away = False
        made.clear()
        facts, made = run(raw, str(tmp_path / "store"))
        assert facts["num_unreached"] == 0 and len(read_examples(made, "train")) == 60
        assert {model.asked[text] for text in answered} == {1}
        assert sum(model.asked[text] == 2 for text in failed) > 0


def test_a_job_without_a_check_keeps_all_that_is_new(tmp_path, student):
    model = Model()
    with endpoint(model.behave) as (_, url):
        raw = made_of(tmp_path, url, student, expand={"to": 30, "samples": 0, "by": ["evolve"]})
        _, made = run(raw, str(tmp_path / "store"))
    new = read_examples(made, "train")[6:]
    assert len(new) == 24 and {example.expected for example in new} == {None}
    assert all(text.startswith("Rewrite the prompt") for text in model.asked)
    assert {len(example.metadata["parents"]) for example in new} == {1}


def test_a_job_without_seeds_or_with_rows_enough_is_refused(tmp_path, student):
    raw = made_of(tmp_path, "http://127.0.0.1:9/v1", student, expand={"to": 6})
    with pytest.raises(SpecError, match=r"expand\.to: 6 rows, and prepare.train has that many"):
        check(build(raw))
    assert check(build({**raw, "expand": None})) == []
    (line,) = check(build({**raw, "expand": {"to": 7, "by": ["persona"]}}))
    assert line == (
        "expand: the teacher writes from 6 rows to 7 by persona, those stay that the teacher "
        "answers alike 3 times"
    )
    chat = [{"role": role, "content": f"{role}?"} for role in ("user", "assistant", "user")]
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    raw["expand"]["to"] = 9
    raw["prepare"]["decontaminate"] = {"enabled": False}
    raw["prepare"]["task_type"] = "conversation"
    with pytest.raises(DataError, match=r"no row of prepare\.train can be continued"):
        run(raw, str(tmp_path / "store"))


def test_a_job_without_expansion_has_the_recipes_it_had_and_one_with_it_reads_it_everywhere(
    tmp_path,
):
    raw = job(tmp_path, "http://127.0.0.1:9/v1")
    with_it, without = recipes(build(raw), {}), recipes(build({**raw, "expand": None}), {})
    assert with_it["prepare"].name == without["prepare"].name
    assert list(with_it) == ["prepare", "expand", *list(without)[1:]]
    assert "expand" not in str([recipe.ingredients for recipe in without.values()])
    readers = [name for name, recipe in without.items() if "prepare" in recipe.inputs]
    assert readers == [name for name, recipe in with_it.items() if "expand" in recipe.inputs]
    assert [name for name, r in with_it.items() if "prepare" in r.inputs] == ["expand"]
    changed = recipes(build({**raw, "expand": {"to": 61}}), {})
    same = {name for name, recipe in changed.items() if recipe.name == with_it[name].name}
    assert same == {"prepare"}


def test_a_model_of_this_machine_stays_open_from_batch_to_batch(tmp_path):
    """All that it knows is letters: it writes random ones, some of them whole replies."""
    writer = save_model(tmp_path / "writer", hidden=32, layers=1)
    config = json.loads((writer / "config.json").read_text())
    (writer / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    own = {"model": str(writer), "engine": "transformers", "runtime": {"num_threads": 1}}
    expand = {"to": 30, "by": ["evolve"], "samples": 0, "temperature": 2.0, "min_new": 0}
    raw = {
        **job(tmp_path, "", expand={**expand, "writer": {**own, "max_tokens": 48}}),
        "generate": {"teacher": str(writer), "engine": "transformers", "top_k": 0},
        "train": {"student": str(writer)},
    }
    facts, made = run(raw, str(tmp_path / "store"))
    assert len(read_examples(made, "train")) > 6 and facts["expanded"]["num_empty_replies"] > 0
    assert facts["expanded"]["num_batches"] > 1
    log = (tmp_path / "store/log").read_text()
    assert log.count("Loading weights: 100%") == 1
