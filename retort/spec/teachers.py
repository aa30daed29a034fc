"""Several teachers: what differs between them, and whose answer an example gets."""

from typing import Any, Literal

from pydantic import BaseModel, model_validator

from retort.records import JsonObject
from retort.spec.engine import GenerateRuntime
from retort.spec.section import Section, knob
from retort.spec.spending import TeacherSpending

# A teacher's name is part of the names of a task, of an MLflow run and of a control.
NAME = r"^[a-z0-9][a-z0-9_]{0,31}$"


class OneTeacher(Section):
    """One of several teachers: the knobs of `generate` that may differ; the others are shared."""

    teacher: str = knob(..., "path, hub id or name at the endpoint", "The model.")
    engine: str = knob("auto", "name", "What runs it.")
    endpoint: str | None = knob(
        None,
        "URL",
        "Its address. With another one, or another engine, than the section's, a teacher has "
        "neither the section's endpoint nor its key.",
    )
    api_key_env: str | None = knob(
        None,
        "name",
        "Environment variable that holds the endpoint's key; never the key itself.",
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    dtype: str = knob("auto", "name", "Precision of its weights.")
    max_model_len: int | None = knob(None, "tokens", "Longest prompt plus answer.", ge=2)
    spending: TeacherSpending = TeacherSpending()
    runtime: GenerateRuntime = GenerateRuntime()


class Route(Section):
    """Whose answers are learned; `route: metadata.topic` is short for `{by: metadata.topic}`."""

    by: str = knob(
        ...,
        "name",
        "metadata.KEY: each example is answered by the teacher of its value; best_judged, "
        "agreement: all teachers answer, and curate.judge or a vote picks an answer of each "
        "example; all: the first writes, the others score its answers, and the signals are fused.",
        pattern=r"^(best_judged|agreement|all|metadata\..+)$",
    )
    to: dict[str, str] = knob(
        {}, "names", "A value of the metadata to its teacher; a teacher's own name needs no entry."
    )
    default: str | None = knob(None, "name", "The teacher of all other values.")
    order: tuple[str, ...] = knob(
        (),
        "names",
        "All teachers, the first first: it writes what is fused, wins a tie, and is the teacher of "
        "the comparison. Empty: as they are written.",
    )
    fusion: Literal["mean", "min_ce"] = knob(
        "mean",
        "name",
        "Of all. mean: the mixture of the distributions by their weights; min_ce: for each token "
        "the distribution that gives it the highest probability.",
    )
    weights: dict[str, float] = knob({}, "names", "A teacher's weight in the mean; 1 if not given.")

    @property
    def key(self) -> str | None:
        """The metadata's key by whose value an example finds its teacher; None where all answer."""
        return self.by.removeprefix("metadata.") if self.by.startswith("metadata.") else None

    def teacher_of(self, value: str) -> str | None:
        """Returns the teacher of a value of the metadata; None where it has none."""
        found = self.to.get(value, value)
        return found if found in self.order else self.default

    def rows_of(self, name: str) -> JsonObject:
        """Returns which values a teacher answers, as ingredients of its fingerprint: its own, or
        all but those of the others. Nothing where it answers every example."""
        if self.key is None:
            return {}
        of = {**{each: each for each in self.order}, **self.to}
        if name == self.default:
            others = sorted(value for value, teacher in of.items() if teacher != name)
            return {"rows": {"key": self.key, "but": others}}
        return {"rows": {"key": self.key, "of": sorted(v for v, t in of.items() if t == name)}}

    @model_validator(mode="after")
    def _names_fit(self) -> "Route":
        if self.key is None and (self.to or self.default):
            raise ValueError(f"to and default are for a route by metadata, not for {self.by}")
        if self.by != "all" and (self.weights or self.fusion != "mean"):
            raise ValueError(f"fusion and weights are for the route all, not for {self.by}")
        if self.fusion == "min_ce" and self.weights:
            raise ValueError(
                "weights are for fusion: mean; min_ce takes one teacher for each token"
            )
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative")
        if self.order and not sum(self.weights.get(name, 1.0) for name in self.order):
            raise ValueError(
                "weights are 0 for every teacher, so that nothing is mixed; give at least one of "
                f"{', '.join(self.order)} a weight above 0"
            )
        for knob_name, named in (
            ("to", self.to.values()),
            ("default", [self.default] if self.default else []),
            ("weights", self.weights),
        ):
            if unknown := sorted(set(named) - set(self.order)):
                raise ValueError(
                    f"{knob_name} names {', '.join(unknown)}, and generate.teachers has "
                    f"{', '.join(self.order)}"
                )
        return self


def complete(raw: JsonObject) -> JsonObject:
    """Returns a `generate` section in which every teacher has all of its knobs, the first one's
    being the section's own, and the route has the order. A complete section stays what it is.

    Raises ValueError where `teacher` or `route` does not fit to `teachers`.
    """
    if not raw.get("teachers"):
        if raw.get("route"):
            raise ValueError("route is for several teachers; name them in teachers, or remove it")
        return raw
    if not isinstance(raw["teachers"], dict):
        return raw
    given = {name: _plain(each) for name, each in raw["teachers"].items()}
    for name, each in given.items():
        if not (isinstance(name, str) and isinstance(each, dict)):
            raise ValueError(
                f"teachers.{name} must be a name with a section such as {{teacher: MODEL}}, not "
                f"{type(each).__name__} {each!r:.40}"
            )
    teachers = {name: _inherited(raw, each) for name, each in given.items()}
    is_complete = all(OneTeacher.model_fields.keys() <= {*each} for each in given.values())
    if raw.get("teacher") and not is_complete:
        raise ValueError(
            "teacher and teachers exclude each other; give the one model in teacher, or several "
            "by their names in teachers"
        )
    route = _plain(raw.get("route"))
    route = {"by": route} if isinstance(route, str) else route
    if not isinstance(route, dict):
        raise ValueError(
            "teachers needs a route that says whose answers are learned: metadata.KEY, "
            "best_judged, agreement or all"
        )
    order = route.get("order") or [*teachers]
    if not isinstance(order, (list, tuple)) or sorted(map(str, order)) != sorted(teachers):
        raise ValueError(f"route.order must name each of {', '.join(teachers)} once")
    first = teachers[order[0]]
    own = {key: value for key, value in first.items() if key in OneTeacher.model_fields}
    return {**raw, **own, "teachers": teachers, "route": {**route, "order": [*order]}}


def shared_knobs(section: JsonObject, teacher: JsonObject) -> JsonObject:
    """Returns the knobs of the section that a teacher has where it sets none.

    A key belongs to its endpoint, and an endpoint to its engine: a teacher with another endpoint or
    engine than the section's has neither of the section's.
    """
    knobs = OneTeacher.model_fields
    hidden = {"teacher"}
    for key in ("engine", "endpoint"):
        of_section = section.get(key, knobs[key].default)
        if teacher.get(key, of_section) != of_section:
            hidden |= {"endpoint", "api_key_env"}
    return {key: section[key] for key in knobs if key in section and key not in hidden}


def _inherited(raw: JsonObject, teacher: JsonObject) -> JsonObject:
    """Returns a teacher with what it does not set from the section, or the section's default."""
    shared = {key: _plain(value) for key, value in shared_knobs(raw, teacher).items()}
    inside = {
        key: {**shared[key], **teacher.get(key, {})}
        for key in ("spending", "runtime")
        if isinstance(shared.get(key), dict) and isinstance(teacher.get(key, {}), dict)
    }
    return {**shared, **teacher, **inside}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
