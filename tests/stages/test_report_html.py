"""The page as bytes: what it says, what no text can break, and that it needs no network."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from retort.metrics.comparison.drawing import SMALL
from retort.metrics.comparison.shapes import (
    Benchmarks,
    BenchmarkScore,
    ConfusionMatrix,
    Difference,
    ExportedStudent,
    GateCheck,
    TrainingContent,
)
from retort.stages.curate.data_card import as_html, as_markdown, picture
from retort.stages.curate.data_card.card import Reasons
from retort.stages.report import read_card
from retort.stages.report.examples import embedded, side_by_side
from retort.stages.report.measurements import Answered
from retort.stages.report.plots import sizes, trade_off
from retort.stages.report.rendering import draw, markdown, page
from retort.stages.report.slices import slices
from retort.store import Folder
from tests.support import report_content
from tests.support.report_content import KNOBS

HOSTILE = (
    "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)> | `x` &amp;"
)


@pytest.fixture(scope="module")
def answered() -> Answered:
    return report_content.answered(200)


class Page(HTMLParser):
    """Reads a page: its elements, its visible text and its scripts."""

    def __init__(self, data: bytes):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._open = "", [""], ""
        self.feed(data.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag
        self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data


def test_embedded_json_reads_back_the_same_and_ends_no_element():
    value = {"text": HOSTILE + "\u2028\u2029<!--", "n": 1.5, "none": None}
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@pytest.fixture(scope="module")
def hostile(answered):
    """A page with markup wherever a user or a model can put it, its examples, and as Markdown."""
    found = report_content.answered(40)
    found.texts["student"]["row-1"] = HOSTILE
    first = replace(found.examples[0], metadata={"topic": HOSTILE, "length": "short"})
    found.examples[0] = replace(first, messages=[{"role": "user", "content": HOSTILE}])
    content = report_content.content(report_content.answered(40))
    models, curves = content.models, content.training.curves
    student = [{**record, HOSTILE: 1.0} for record in curves["student"]]
    content = replace(
        content,
        name=HOSTILE,
        warnings=[HOSTILE],
        slices=slices(found, KNOBS),
        ran=replace(content.ran, spec={"note": HOSTILE}, hardware={"cpu": HOSTILE}),
        models={**models, "base": replace(models["base"], model=HOSTILE)},
        training=replace(content.training, curves={**curves, "student": student}),
    )
    card = report_content.CARD
    card = replace(card, name=HOSTILE, reasons=Reasons({HOSTILE: 1}, {}), recognised={HOSTILE: 2})
    examples = side_by_side(found)
    pictures = {**draw(content), "card": [as_html(card)]}
    text = markdown(content, examples.rows, as_markdown(card))
    return page(content, examples, pictures), text


def test_no_text_of_anyone_becomes_markup(hostile):
    data, text = hostile
    shown = Page(data)
    tags = [tag for tag, _ in shown.elements]
    assert tags.count("script") == 2 and "img" not in tags
    assert not [a for _, attributes in shown.elements for a in attributes if a.startswith("on")]
    rows = json.loads(shown.scripts[1])["rows"]
    assert HOSTILE in {row["answers"]["student"] for row in rows}
    # The name, a warning, a slice, a model, hardware, the spec, a reason and a format, as text.
    assert shown.text.count("<img src=x onerror=alert(1)>") >= 8
    assert "<img" not in text and "<script" not in text and "&lt;img" in text


def test_the_page_needs_no_network_and_is_the_same_bytes_each_time(answered):
    content = report_content.content(answered)
    first = report_content.page_of(content, answered)
    assert first == report_content.page_of(content, answered)
    shown = Page(first)
    for tag, attributes in shown.elements:
        assert tag not in ("link", "iframe", "object"), tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert b"@import" not in first and b"url(http" not in first


def test_each_picture_is_drawn_in_the_pages_colours(answered):
    data = report_content.page_of(report_content.content(answered), answered).decode()
    figures = data.split("<figure>")[1:]
    pictures = [f[f.index("<svg") : f.rindex("</svg>") + 6] for f in figures if "<svg" in f]
    # Trade-off, differences; whole answer, first token; three terms.
    assert len(pictures) == 2 + 2 + 3
    ids = []
    for text in pictures:
        root = ElementTree.fromstring(text)
        marks = [each for each in root.iter() if each.tag.endswith(("path", "use", "text"))]
        assert len(marks) > 3
        assert root.get("aria-label")
        ids += [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    assert "var(--blue)" in pictures[0] and "#0072b2" not in "".join(pictures)


def test_the_page_says_all_that_the_content_holds(answered):
    content = report_content.content(answered)
    task = {"arc_easy": {"acc": BenchmarkScore(0.512, 0.014)}}
    models = {"teacher": task, "student": {}}
    told = Benchmarks("0123abcd", "0.4", "vllm", "auto", 256, {}, models, {}, ["limited"], [], {})
    content = replace(
        content,
        benchmarks=told,
        fingerprints={"train": "0123abcd"},
        prefect={"flow_run_id": None},
        registered={"name": "trains", "version": "3", "compared_with": "2"},
    )
    text = " ".join(Page(report_content.page_of(content, answered)).text.split())
    for words in (
        *("beware of the night", "of the teacher's accuracy kept", "95% of whole answers within"),
        *("weather", "contradiction", "arc_easy, acc", "0.512 ± 0.0140", "limited", "0123abcd"),
        *("unknown: nothing measured it", "apache-2.0; allows distillation", "cost unknown"),
        *("cores 2, memory 25.3 GB, gpus none", "trains, version 3, compared with version 2"),
        *("generate 440 s", "flow run id unknown", "12,700 rows in, 11,201 responses learned"),
        *("verified: wrong answer", "not JSON", "5,000 → 4,700", "Prompts, in tokens"),
    ):
        assert words in text, words


def test_a_page_without_slices_curves_latencies_or_closed_answers_leaves_them_out(answered):
    content = report_content.content(answered)
    models = {
        role: replace(model, latencies=None, confusion=None)
        for role, model in content.models.items()
    }
    curves = TrainingContent(curves={"student": []})
    content = replace(content, slices=[], warnings=[], training=curves, models=models)
    ids = {
        attributes.get("id")
        for _, attributes in Page(report_content.page_of(content, answered)).elements
    }
    assert not {"slices", "training", "latency", "confusion", "benchmarks"} & ids
    assert {"comparison", "gate", "data", "examples", "ran"} <= ids


def test_of_many_labels_the_most_frequent_are_shown_and_the_rest_summed(answered):
    content = report_content.content(answered)
    counts = [[0] * 21 for _ in range(20)]
    for at in range(20):
        counts[at][at] = 20 - at
        counts[at][19] += 1
    matrix = ConfusionMatrix([f"label {at}" for at in range(20)], counts)
    student = replace(content.models["student"], confusion=matrix)
    content = replace(content, models={**content.models, "student": student})
    text = Page(report_content.page_of(content, answered)).text
    assert "label 11" in text and "label 12" not in text
    assert "8 rarer labels are not shown." in text


def test_less_perplexity_is_better_and_shown_so(answered):
    lower = Difference(-0.5, -0.8, -0.2, 200, p_value=0.0004)
    content = replace(
        report_content.content(answered),
        all_differences={"base": {"perplexity": lower, "accuracy": lower}},
    )
    data = report_content.page_of(content, answered).decode()
    rows = [row for row in data.split("<tr>") if "&lt; 0.001" in row]
    assert [row.split('<td class="')[-1].split('"')[0] for row in rows] == ["above", "below"]
    assert "-0.500" in rows[0] and all(row.count("below</td>") == 1 for row in rows)


def test_a_data_card_of_an_earlier_version_is_shown_as_its_picture(tmp_path):
    curated = Folder(str(tmp_path))
    curated.write("data_card.svg", picture(report_content.CARD))
    text, shown = read_card(curated)
    assert text.startswith("## Data") and "data_card.svg" in text
    root = ElementTree.fromstring(shown)
    assert "12,700" in {"".join(each.itertext()) for each in root.iter()}
    assert "var(--blue)" in shown and "#0072b2" not in shown


def test_a_picture_of_exports_without_any_score_has_no_legend(answered):
    content = report_content.content(answered)
    unknown = replace(content.models["student"], metrics={})
    check = GateCheck("quality", "within a point", None, False, "it did not run")
    exports = {"student_gguf": ExportedStudent("gguf", unknown, check)}
    models = dict.fromkeys(("teacher", "student"), unknown)
    assert sizes(replace(content, models=models, exports=exports))


def test_long_names_of_controls_stand_whole_in_a_legend(answered):
    models = dict(report_content.content(answered).models)
    names = ["without_hidden_states", "without_attention_relations", "offline_cost"]
    picture = trade_off(models | dict.fromkeys(names, models["base"]), "accuracy")
    root = ElementTree.fromstring(picture or "")
    width = float(root.get("viewBox", "").split()[2])
    places = {
        each.text: float(each.get("x", "nan"))
        for each in root.iter()
        if each.tag.endswith("text") and each.text in {*names, *models}
    }
    assert {*places} == {*names, *models}
    for name, at in places.items():
        assert at + 0.6 * SMALL * len(name) < width
