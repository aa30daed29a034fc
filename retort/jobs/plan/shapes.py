"""What a plan says. Scores are values of the metric that decides; of shares, 0.01 is a point."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from retort.metrics.bootstrap import ExampleStatistics
from retort.metrics.comparison.shapes import Estimate
from retort.metrics.learning_curve import Band
from retort.records import JsonObject

Verdict = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Point:
    """A student that learned from so many examples, and its score on the validation examples.

    `data` names the stored answers it learned from, `recipe` how it learned, `first` some of its
    examples; those of an earlier plan are compared with today's by them.
    """

    num_examples: int
    train: str
    data: str
    recipe: str
    first: list[str]
    score: Estimate
    validation_loss: float | None
    seconds: float
    score_seconds: float
    statistics: ExampleStatistics = field(repr=False)


@dataclass(frozen=True)
class Forecast:
    """What so many more prompts would cost and bring. Money is None without prices, minutes of the
    teacher where its speed is unknown; `train_minutes` are of one training with all examples."""

    num_prompts: int
    num_examples: int
    money: float | None
    teacher_minutes: float | None
    train_minutes: float
    score: Band
    gain: Band


@dataclass(frozen=True)
class Limit:
    """Whether something holds the student back, and how that was judged."""

    name: str
    holds_back: Verdict
    reason: str


@dataclass(frozen=True)
class Fact:
    """What an earlier plan said of a number of examples, and what came."""

    num_examples: int
    forecast: Band
    score: float

    @property
    def held(self) -> bool:
        """Whether the score is within the band."""
        return self.forecast.low <= self.score <= self.forecast.high


@dataclass(frozen=True)
class Plan:
    """All of it. `curve` are scores by number of examples, `best` that of any number of examples;
    `enough` is the number from which a doubling gains less than `least`, None where it is more than
    a thousand times today's. `of_a_training` is what the plan's own trainings and answers took, in
    trainings of the whole student."""

    name: str
    metric: str
    num_validation: int
    points: list[Point]
    teacher: Estimate
    curve: list[tuple[int, Band]]
    best: Band
    exponent: Band
    least: float
    enough: int | None
    forecasts: list[Forecast]
    limits: list[Limit]
    facts: list[Fact]
    of_a_training: float
    notes: list[str]

    @property
    def num_examples(self) -> int:
        """How many examples the job's student learns from."""
        return self.points[-1].num_examples

    def as_json(self) -> JsonObject:
        """Returns all of it as JSON, without the scores of each example."""
        found = asdict(self)
        for point in found["points"]:
            del point["statistics"], point["first"]
        found["facts"] = [asdict(fact) | {"held": fact.held} for fact in self.facts]
        return found

    def numbers(self) -> dict[str, float]:
        """Returns it as metrics of MLflow."""
        found = {"teacher": self.teacher.value, "of_a_training": self.of_a_training}
        found["num_examples"] = float(self.num_examples)
        for name, band in {"best": self.best, "exponent": self.exponent}.items():
            found |= {f"{name}.{end}": value for end, value in asdict(band).items()}
        for each in self.forecasts:
            stem = f"more_{each.num_prompts}"
            found |= {f"{stem}.gain_{end}": v for end, v in asdict(each.gain).items()}
            found |= {f"{stem}.money": each.money} if each.money is not None else {}
        return found
