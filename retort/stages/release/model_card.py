"""The model card: README.md of the released folder, whose front matter the Hugging Face Hub reads.

It goes wherever the model goes, so it names models and digests, never a place on a machine.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from retort.metrics.comparison import caption, details, table, verdict
from retort.stages.report import licences
from retort.stages.stage import Stage

USES = {
    "nli": "Saying whether a premise entails, contradicts or leaves open a hypothesis",
    "qa": "Answering questions",
    "math": "Solving mathematical problems",
    "conversation": "Holding conversations",
    "summarization": "Summarising texts",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The licences that the Hub knows by these names; of another it wants to be told the name.
HUB_LICENCES = re.compile(
    r"apache-2\.0|mit|bsd-[23]-clause|isc|cc0-1\.0|cc-by(-(nc|sa|nc-sa|nc-nd|nd))?-4\.0|gemma|"
    r"llama2|llama3(\.[123])?|llama4"
)
SHOWN_DIGITS = 16
DEFAULT_TASK = "Answering as its teacher does"


def model_card(stage: Stage, reported: dict[str, Any]) -> str:
    """Returns the card: what the student is, scored and was made from, and how to load it."""
    spec = stage.spec
    known = {
        role: licences.of(model)
        for role, model in (("teacher", spec.generate.teacher), ("base", spec.train.student))
    }
    parts = [
        "---\n" + yaml.safe_dump(_front(stage, known["base"]), sort_keys=False) + "---",
        f"# {spec.name}",
        f"Distilled from `{_name(spec.generate.teacher)}` (the teacher) into "
        f"`{_name(spec.train.student)}` (the base) by Retort.",
        f"**{verdict(reported)}**",
        "## Intended use and limits",
        *_uses(stage, reported),
        "## Scores",
        _table(table(reported)),
        _table(details(reported)),
        caption(reported),
        "## Gate",
        _gate(reported["gate"]),
        "## Data",
        *_data(stage),
        "## Licences",
        *(_licence(role, found) for role, found in known.items()),
        "## How to load it",
        _snippets(stage),
    ]
    return "\n\n".join(parts) + "\n"


def _front(stage: Stage, licence: dict[str, Any]) -> dict[str, Any]:
    """Returns the front matter. A base in a folder has no id there: the Hub would look for it."""
    spec, named = stage.spec, licence["license"]
    found: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if _is_hub_id(spec.train.student):
        found |= {"base_model": spec.train.student, "base_model_relation": "finetune"}
    if named and HUB_LICENCES.fullmatch(named.lower()):
        found["license"] = named.lower()
    elif named:
        found |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", named.lower())}
    tags = ["distillation", "retort", spec.prepare.task_type.rpartition(":")[2]]
    return found | {"tags": tags, "model_name": spec.name}


def _uses(stage: Stage, reported: dict[str, Any]) -> list[str]:
    data, student = reported["data"], reported["models"]["student"]
    use = USES.get(stage.spec.prepare.task_type, DEFAULT_TASK)
    use = stage.spec.release.intended_use or f"{use}, asked as in the training data."
    longest = student.get("max_model_len") or stage.spec.generate.max_model_len
    prompt_and_answer = (
        f", prompt and answer together at most {longest:,} tokens" if longest else ""
    )
    limits = [
        f"- It was compared on {data['num_examples']:,} held-out examples of the same kind"
        f"{prompt_and_answer}. Of other data, languages and lengths nothing is known.",
        "- It learned from its teacher's answers, their mistakes and manners included.",
        *(f"- {warning}" for warning in reported.get("warnings", [])),
    ]
    return [use, "\n".join(limits)]


def _gate(gate: dict[str, Any]) -> str:
    lines = ["It passed:" if gate["passed"] else "It was refused:", ""]
    for check in gate["checks"]:
        measured = check["measured"]
        shown = f"measured {measured:.4g}" if measured is not None else f"{check['reason']}"
        outcome = "passed" if check["passed"] else "refused"
        lines.append(f"- {check['name']}: required {check['required']}; {shown}: {outcome}")
    return "\n".join(lines)


def _data(stage: Stage) -> list[str]:
    """Returns what the student learned from: the files by digest, the filters with counts."""
    prepared = stage.input("prepare").read_manifest()
    curated = stage.facts("curate")
    sources = [
        f"- {key.removeprefix('prepare.')}: sha256 `{digest[:SHOWN_DIGITS]}`"
        for key, digest in prepared["ingredients"]["sources"].items()
        if digest != "none"
    ]
    kept = f"{curated['num_kept']:,} of {curated['num_responses']:,} responses were kept"
    reasons = [f"- {reason}: {count:,}" for reason, count in curated.get("reasons", {}).items()]
    rejected = f"{kept}; the others were rejected:" if reasons else f"{kept}."
    names = [chosen.name for chosen in stage.spec.curate.filters or ()]
    filters = f"Filters: {', '.join(names)}." if names else "Filters: the task type's own."
    learned = stage.facts("train")["num_train"]
    return [
        f"It learned from {learned:,} responses of its teacher. The files:",
        "\n".join(sources),
        f"{filters} {rejected}",
        *(["\n".join(reasons)] if reasons else []),
    ]


def _licence(role: str, found: dict[str, Any]) -> str:
    named = found["license"]
    known = f"{named} (by {found['source']}); distillation: {found['distillation']}. "
    return f"- {role}: {known if named else ''}{found['note']}"


def _snippets(stage: Stage) -> str:
    """Returns how to load and ask the model, as it was asked in the comparison."""
    tokens = stage.spec.evaluate.max_tokens or stage.spec.generate.max_tokens
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies
model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
chat = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```python
from vllm import LLM, SamplingParams

model = LLM("where this card lies")
chat = [{{"role": "user", "content": "..."}}]
print(model.chat(chat, SamplingParams(temperature=0, max_tokens={tokens}))[0].outputs[0].text)
```"""


def _name(model: str) -> str:
    """Returns a model's hub id, or the name of its folder without the place where it lies."""
    return model if _is_hub_id(model) else Path(model).name


def _is_hub_id(model: str) -> bool:
    return HUB_ID.fullmatch(model) is not None and not Path(model).exists()


def _table(rows: list[list[str]]) -> str:
    heading, *body = rows
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading), *lines])
