"""One command per measured claim; each ends with one JSON line a measure."""

import json

Measure = tuple[str, float, float, bool]  # name, value, target, passed


def show(measures: list[Measure]) -> None:
    """Prints a table of the measures, then one JSON line each."""
    for name, value, target, passed in measures:
        print(f"{name:44} {value:14.6g}  target {target:10g}  {'ok' if passed else 'MISSED'}")
    for name, value, target, passed in measures:
        print(json.dumps({"measure": name, "value": value, "target": target, "passed": passed}))
