"""Every knob and plug-in as a Markdown page: `python -m retort.spec.reference` prints it."""

import ast
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from retort.plugins import functions
from retort.spec.job import STAGES, JobSpec
from retort.spec.section import Section

OPENING = """# Every knob

Made from the spec by `python -m retort.spec.reference`. On the command line a knob is written
`section.name` (`--set train.learning_rate=1e-4`). Knobs under `runtime`, `spending` and `cluster`
never change a result, so that changing one keeps everything that is cached.
"""


PLUG_INS = {
    "Formats": ("prepare.format", "retort.data.formats"),
    "Scrubbers": ("prepare.scrub", "retort.data.scrubbers"),
    "Filters": ("curate.filters", "retort.data.filters"),
    "Losses": ("train.losses", "retort.losses"),
    "Metrics": ("evaluate.metrics", "retort.metrics"),
}


def page() -> str:
    """Returns the page: a table for each section and each section in it, then the plug-ins."""
    parts = [OPENING, "## The job\n", _table("", {"name": JobSpec.model_fields["name"]})]
    shown: dict[type[Section], str] = {}
    for name in (stage for stage in (*STAGES, "cluster", "sweep") if stage in JobSpec.model_fields):
        section = _section_of(JobSpec.model_fields[name].annotation)
        assert section
        parts += _parts(name, section, shown)
    parts.append(
        "\n## Plug-ins by name\n\nOptions are given beside the name: "
        "`{name: length, max_words: 300}`. [plug-ins.md](plug-ins.md) says how to add one.\n"
    )
    for title, (knob, module) in PLUG_INS.items():
        parts += [f"\n### {title} (`{knob}`)\n", *_plug_ins(module)]
    return "\n".join(parts)


def _parts(where: str, section: type[Section], shown: dict[type[Section], str]) -> Iterator[str]:
    """Yields headings and tables of a section and of those inside it; each is shown once."""
    yield f"\n{'#' * min(2 + where.count('.'), 4)} {where}\n"
    yield f"{(section.__doc__ or '').strip().splitlines()[0]}\n"
    if section in shown:
        yield f"The knobs are those of `{shown[section]}`."
        return
    shown[section] = where
    inner = {name: _section_of(f.annotation) for name, f in section.model_fields.items()}
    plain = {
        name: f
        for name, f in section.model_fields.items()
        if not inner[name] or str in get_args(f.annotation)
    }
    if plain:
        yield _table(where, plain)
    for name, found in inner.items():
        if found:
            many = get_origin(section.model_fields[name].annotation) is dict
            yield from _parts(f"{where}.{name}{'.NAME' * many}", found, shown)


def _table(where: str, fields: dict[str, FieldInfo]) -> str:
    lines = ["| knob | value | default | what it does |", "|---|---|---|---|"]
    for name, field in fields.items():
        key = f"{where}.{name}" if where else name
        text, _, facts = (field.description or "").partition(" [")
        value = ", ".join(f"`{choice}`" for choice in _choices(field.annotation))
        value = value or facts.rstrip("]") or _unit(field)
        lines.append(_row(f"`{key}`", value, _default(field), text))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = extra.get("unit") if isinstance(extra, dict) else None
    return "number" if unit in (None, "1") else str(unit)


def _plug_ins(module: str) -> Iterator[str]:
    """Yields a table of a module's plug-in functions: name, options, and what it does."""
    yield "| name | options | what it does |\n|---|---|---|"
    for function in functions(module):
        names, values = function.args.kwonlyargs, function.args.kw_defaults
        options = [
            f"`{option.arg}: {ast.unparse(value)}`" if value else f"`{option.arg}`"
            for option, value in zip(names, values, strict=True)
        ]
        text = (ast.get_docstring(function) or "").split("\n\n")[0].replace("\n", " ")
        yield _row(f"`{function.name}`", ", ".join(options), text)


def _choices(annotation: Any) -> list[str]:
    """Returns the values of the literals in an annotation."""
    values = [v for v in get_args(annotation) if isinstance(v, str)]
    if values:
        return values
    return [c for inner in get_args(annotation) for c in _choices(inner) if get_origin(inner)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "not set"
    if value in ((), {}):
        return "none"
    shown = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else f"`{value}`"
    return str(shown)


def _section_of(annotation: Any) -> type[Section] | None:
    """Returns the section that a field holds, directly, as an option or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is dict:
        return _section_of(get_args(annotation)[1])
    is_choice = get_origin(annotation) in (Union, tuple) or "UnionType" in type(annotation).__name__
    inner = [_section_of(part) for part in get_args(annotation)] if is_choice else []
    found = [section for section in inner if section]
    others = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    is_one = len(found) == 1 and others in (found, [str, *found])
    return found[0] if is_one else None


if __name__ == "__main__":
    print(page(), end="\n")
