"""The knobs of the report: prices, slices, the gate, and what is released.

They judge or show what was measured; changing one does not repeat a measurement.
"""

from typing import Literal

from pydantic import model_validator

from retort.spec.section import Section, knob

GateCheck = Literal["retention", "beats_base", "beats_fine_tuning", "beats_champion", "latency"]


class ExportGate(Section):
    """What an exported student must keep to be released. The student itself is not refused."""

    max_loss: float = knob(0.01, "score", "Most that its score may lie below the student's.", ge=0)
    on_bound: bool = knob(
        True, "yes or no", "Use the worse bound of the 95% interval, not the measured value."
    )
    max_kl: float | None = knob(
        None, "nats", "Most KL divergence from the student, a token; not judged if not given.", ge=0
    )
    tokenizer: Literal["all_texts", "own_texts"] = knob(
        "all_texts",
        "name",
        "On which texts its runtime must give the student's token ids: on the job's own and all "
        "others of many kinds, or on the job's own alone.",
    )


class Gate(Section):
    """What the student must reach to be released."""

    min_retention: float = knob(
        0.9, "ratio", "Least student score as a share of the teacher's.", ge=0
    )
    beat_base: bool = knob(True, "yes or no", "The student must score above its base.")
    beat_fine_tuning: bool = knob(
        False, "yes or no", "It must score above the control fine_tuning (train.controls)."
    )
    beat_champion: bool = knob(
        True, "yes or no", "It must not score below the champion of its name, where there is one."
    )
    max_latency_seconds: float | None = knob(
        None, "seconds", "Longest time for 95% of whole answers, one at a time.", gt=0
    )
    max_memory_bytes: int | None = knob(
        None, "bytes", "Most memory of its process: of the GPU where one is used.", gt=0
    )
    max_cost_per_1000_requests: float | None = knob(
        None, "money", "Highest cost of 1,000 requests; needs report.prices.", gt=0
    )
    on_bound: tuple[GateCheck, ...] = knob(
        (), "checks", "Checks that use the worse bound of the 95% interval, not the measured value."
    )
    export: ExportGate = knob(
        ExportGate(), "section", "What an exported student must keep.", added_later=True
    )


class Price(Section):
    """What a model costs to run: by the hour of its machine, or by the token."""

    price_per_hour: float = knob(0.0, "money", "Price of the machine it runs on.", ge=0)
    price_per_million_input_tokens: float = knob(0.0, "money", "Price of the prompts.", ge=0)
    price_per_million_output_tokens: float = knob(0.0, "money", "Price of the answers.", ge=0)


class Prices(Section):
    """The prices that give the cost of 1,000 requests."""

    teacher: Price | None = knob(
        None, "section", "The teacher's; those of generate.spending if not given."
    )
    student: Price | None = knob(None, "section", "The student's, its base's and the controls'.")


class Report(Section):
    """What was gained and lost, and the verdict."""

    gate: Gate = Gate()
    prices: Prices = Prices()
    slices: tuple[str, ...] = knob(
        (), "names", "Columns of the rows' metadata; each value is scored by itself."
    )
    num_examples: int = knob(
        10, "examples", "Answers shown side by side in report.md, the worst first.", ge=0
    )

    @model_validator(mode="after")
    def _cost_needs_a_price(self) -> "Report":
        if self.gate.max_cost_per_1000_requests and self.prices.student is None:
            raise ValueError(
                "gate.max_cost_per_1000_requests bounds what the student costs, but no price is "
                "given; set prices.student.price_per_hour or its prices per token, or take it out"
            )
        return self


class Release(Section):
    """The student, packed and registered."""

    registered_model: str | None = knob(
        None, "name", "Name in the MLflow model registry; the job's name if not given."
    )
    log_weights: bool = knob(
        False, "yes or no", "Also copy the weights into MLflow's artifact store."
    )
    intended_use: str | None = knob(
        None, "text", "What the student is for; part of the model card."
    )
