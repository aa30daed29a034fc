"""The model card: README.md of the released folder, whose front matter the Hugging Face Hub reads.

It goes wherever the model goes, so it names models and digests, never a place on a machine.
"""

import re
from pathlib import Path

from markupsafe import Markup

from retort.metrics.comparison import caption, details, formatting, pages, table, verdict
from retort.metrics.comparison.shapes import ReportContent
from retort.spec import JobSpec
from retort.stages.stage import Stage
from retort.stages.teachers import each_job

USES = {
    "nli": "Saying whether a premise entails, contradicts or leaves open a hypothesis",
    "qa": "Answering questions",
    "math": "Solving mathematical problems",
    "conversation": "Holding conversations",
    "summarization": "Summarising texts",
}
OTHER_USE = "Answering as its teacher does"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The licences that the Hub knows by these names; another one is `other` with a name.
HUB_LICENCES = re.compile(
    r"apache-2\.0|mit|bsd-[23]-clause|isc|cc0-1\.0|cc-by(-(nc|sa|nc-sa|nc-nd|nd))?-4\.0|gemma|"
    r"llama2|llama3(\.[123])?|llama4"
)
SHOWN_DIGITS = 16


def model_card(stage: Stage, content: ReportContent) -> str:
    """Returns the card: what the student is, scored and was made from, and how to load it."""
    spec, models, comparison = stage.spec, content.models, content.comparison
    digests = stage.input("prepare").read_manifest()["ingredients"]["sources"]
    use = f"{USES.get(spec.prepare.task_type, OTHER_USE)}, asked as in the training data."
    return pages.markdown(
        "retort.stages.release",
        "model_card.md.jinja",
        content=content,
        spec=spec,
        front=Markup(front_matter(spec, content)),
        teachers=[_name(own.generate.teacher) for own in each_job(spec).values()],
        base=_name(spec.base) + ", cut" * (spec.cut is not None),
        verdict=verdict(comparison, content.gate),
        use=spec.release.intended_use or use,
        longest=models["student"].max_model_len or spec.generate.max_model_len,
        table=table(models, comparison.metric),
        details=details(models, comparison.metric, comparison.differences),
        caption=caption(content),
        num_learned=stage.facts("train")["num_train"],
        sources={
            name.removeprefix("prepare."): digest[:SHOWN_DIGITS]
            for name, digest in digests.items()
            if digest != "none"
        },
        filters=[chosen.name for chosen in spec.curate.filters],
        curated=stage.facts("curate"),
        max_tokens=spec.evaluate.max_tokens or spec.generate.max_tokens,
        show=formatting,
    )


def front_matter(spec: JobSpec, content: ReportContent, relation: str = "finetune") -> str:
    """Returns the front matter as YAML; it names the base only where that is a model of the Hub,
    and `relation`, what the model is to its base."""
    from huggingface_hub import ModelCardData

    base, licence = spec.base, content.ran.licences.get("base")
    name = (licence.license or "").lower() if licence else ""
    is_known = HUB_LICENCES.fullmatch(name) is not None
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if _is_hub_id(base) else None,
        base_model_relation=relation if _is_hub_id(base) else None,
        license=(name if is_known else "other") if name else None,
        license_name=None if is_known else re.sub(r"[^a-z0-9.]+", "-", name) or None,
        tags=["distillation", "retort", spec.prepare.task_type.rpartition(":")[2]],
        model_name=spec.name,
    )
    return str(card.to_yaml())


def _name(model: str) -> str:
    """Returns a model's hub id, or the name of its folder without the place where it lies."""
    return model if _is_hub_id(model) else Path(model).name


def _is_hub_id(model: str) -> bool:
    return HUB_ID.fullmatch(model) is not None and not Path(model).exists()
