"""What 1,000 requests cost, from measured speed, counted tokens and the prices of the spec."""

from typing import Any

from retort.spec import JobSpec, Price


def price_of(spec: JobSpec, role: str) -> Price | None:
    """Returns a model's price; the student's is also its base's and the controls'."""
    if role != "teacher":
        return spec.report.prices.student
    if spec.report.prices.teacher is not None:
        return spec.report.prices.teacher
    spending = spec.generate.spending
    return Price(**{name: getattr(spending, name) for name in Price.model_fields})


def per_1000_requests(model: dict[str, Any], price: Price | None, num: int) -> float | None:
    """Returns the money for 1,000 requests; None where no price is given or a number is unknown.

    By the hour: at the measured requests a second. By the token: as many to a request as the `num`
    test examples took on average, prompts and answers.
    """
    if price is None or not any(price.model_dump().values()):
        return None
    cost = 0.0
    if price.price_per_hour:
        rate = model.get("requests_per_second")
        if not rate:
            return None
        cost += price.price_per_hour / (rate * 3600) * 1000
    for tokens, each in (
        ("num_prompt_tokens", price.price_per_million_input_tokens),
        ("num_tokens", price.price_per_million_output_tokens),
    ):
        if each:
            if not model.get(tokens) or not num:
                return None
            cost += each / 1e6 * model[tokens] / num * 1000
    return cost
