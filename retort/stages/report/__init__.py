"""report: what was gained and what was lost, pulled from the other stages' artifacts.

No stage knows that the report exists. What belongs to one run only (its MLflow and Prefect ids)
is added when the job finishes, so that a cached report names the run that shows it.
"""

from dataclasses import asdict

from retort.metrics.comparison import as_json
from retort.metrics.comparison.drawing import inline
from retort.records import JsonObject
from retort.stages.report.content import content_of
from retort.stages.report.examples import side_by_side
from retort.stages.report.measurements import measured, read_answered
from retort.stages.report.rendering import draw, markdown, page
from retort.stages.stage import Stage
from retort.store import Folder

PICTURE = "data_card.svg"


def report(stage: Stage) -> JsonObject:
    """Writes `report.json`, `report.md`, `report.html`, and `data_card.svg`; and what the page is
    made from: `examples.json` and `pictures.json`. Returns comparison and verdict."""
    evaluated = measured(stage)
    answered = read_answered(stage, evaluated.models)
    content, examples = content_of(stage, evaluated, answered), side_by_side(answered)
    worst = examples.rows[: stage.spec.report.num_examples]
    card_as_markdown, card_as_html = read_card(stage.input("curate"))
    pictures = {**draw(content), "card": [card_as_html]}
    raw = as_json(content)
    stage.out.write(PICTURE, stage.input("curate").read(PICTURE))
    stage.out.write_json("report.json", raw)
    stage.out.write_json("examples.json", asdict(examples))
    stage.out.write_json("pictures.json", pictures)
    stage.out.write("report.md", markdown(content, worst, card_as_markdown).encode())
    stage.out.write("report.html", page(content, examples, pictures))
    stage.report.progress(1, 1, "report")
    return {"comparison": raw["comparison"], "gate": raw["gate"]}


def read_card(curated: Folder) -> tuple[str, str]:
    """Returns the data card that curate rendered, as Markdown and as HTML.

    An artifact of an earlier version holds it as a picture alone, which takes the place of both.
    """
    if curated.has("data_card.html"):
        return curated.read("data_card.md").decode(), curated.read("data_card.html").decode()
    picture = inline(curated.read(PICTURE), "card", "Data card")
    text = "## Data\n\nWhat became of the rows: see the picture `data_card.svg`, beside this page."
    return text, f'<div class="scroll"><div class="whole-card">{picture}</div></div>'
