"""report: what was gained and what was lost, pulled from the other stages' artifacts.

No stage knows that the report exists. What belongs to one run only (its MLflow and Prefect ids)
is added when the job finishes, so that a cached report tells of the run that shows it.
"""

from typing import Any

from retort.stages.report.answers import read_answered
from retort.stages.report.content import content_of
from retort.stages.report.examples import side_by_side
from retort.stages.report.html import draw, page
from retort.stages.report.markdown import markdown
from retort.stages.report.measurements import measured
from retort.stages.stage import Stage


def report(stage: Stage) -> dict[str, Any]:
    """Writes `report.json`, `report.md` and `report.html`; what the last is made from, too:
    `examples.json`, `pictures.json`; and `data_card.svg`. Returns comparison and verdict."""
    evaluated = measured(stage)
    answered = read_answered(stage, evaluated["models"])
    content, examples = content_of(stage, evaluated, answered), side_by_side(answered)
    worst = examples["rows"][: stage.spec.report.num_examples]
    stage.out.write("data_card.svg", stage.input("curate").read("data_card.svg"))
    stage.out.write_json("report.json", content)
    stage.out.write_json("examples.json", examples)
    stage.out.write("report.md", markdown(content, worst).encode())
    pictures = draw(content)
    stage.out.write_json("pictures.json", pictures)
    stage.out.write("report.html", page(content, examples, pictures))
    stage.report.progress(1, 1, "report")
    return {"comparison": content["comparison"], "gate": content["gate"]}
