"""What a model may cost: its prices, and the limits that a run stops before."""

from pydantic import model_validator

from retort.spec.section import Section, knob


class Spending(Section):
    """What a model may cost. These knobs never change an answer."""

    price_per_million_input_tokens: float = knob(0.0, "money", "Price of the prompts.", ge=0)
    price_per_million_output_tokens: float = knob(0.0, "money", "Price of the answers.", ge=0)
    price_per_hour: float = knob(0.0, "money", "Price of the machine the model runs on.", ge=0)
    max_tokens_total: int | None = knob(
        None, "tokens", "The run stops before prompts and answers exceed this.", ge=1
    )
    max_cost: float | None = knob(None, "money", "The run stops before the model costs more.", gt=0)

    @model_validator(mode="after")
    def _is_priced(self) -> "Spending":
        prices = (
            self.price_per_million_input_tokens,
            self.price_per_million_output_tokens,
            self.price_per_hour,
        )
        if self.max_cost is not None and not any(prices):
            raise ValueError(
                f"max_cost: {self.max_cost:g} limits nothing while every price is 0; set "
                "price_per_million_input_tokens and price_per_million_output_tokens, or "
                "price_per_hour"
            )
        return self


class TeacherSpending(Spending):
    """What the teacher may cost, in expand, generate and evaluate together."""

    pilot_rows: int = knob(
        16,
        "rows",
        "Asked first; the job stops where so many of their answers are unusable that "
        "min_success_ratio is implausible. 0: no pilot.",
        ge=0,
    )
