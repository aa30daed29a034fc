"""The report as a page in Markdown: the tables, the gate, the data and the worst answers."""

from typing import Any

from retort.metrics.comparison import caption, details, headlines, table, verdict
from retort.metrics.comparison.formatting import gap, gaps, interval, known, score
from retort.stages.curate import data_card
from retort.stages.report.examples import Row


def markdown(content: dict[str, Any], examples: list[Row]) -> str:
    """Returns the report as a page."""
    parts = [
        f"# {_line(content['name'])}",
        f"**{verdict(content)}**",
        _listed(f"warning: {_line(text)}" for text in content["warnings"]),
        _listed(_headline(each) for each in headlines(content) if each["good"] is not None),
        _table(table(content)),
        _table(details(content)),
        caption(content),
        "## Gate",
        _listed(_check(check) for check in content["gate"]["checks"]),
        _slices(content),
        data_card.page(content["data"]["card"]),
        "The same as a picture: `data_card.svg`, beside this page. All of this with pictures and "
        "every answer: `report.html`.",
        _examples(examples, content["models"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(each: dict[str, Any]) -> str:
    detail = f" ({each['detail']})" if each["detail"] else ""
    return f"{each['figure']} {each['label']}{detail}"


def _check(check: dict[str, Any]) -> str:
    mark = "passed" if check["passed"] else "**refused**"
    measured = known(check["measured"], "{:,.4g}".format)
    why = f" ({check['reason']})" if check.get("reason") else ""
    return f"{check['name']}: required {check['required']}; measured {measured}{why}: {mark}"


def _slices(content: dict[str, Any]) -> str:
    metric, parts = content["comparison"]["metric"], []
    for each in content["slices"]:
        rows = [[each["column"], "examples", "teacher", "student", "student - teacher", "outcome"]]
        for value in each["values"]:
            found = [value["metrics"].get(role) for role in ("teacher", "student")]
            scores = [
                known(f, lambda f: f"{score(f['value'], metric)} ({interval(f, metric)})")
                for f in found
            ]
            apart = value["difference"]
            told = known(apart, lambda d: f"{gap(d['value'], metric)} ({gaps(d, metric)})")
            rows.append(
                [
                    value["value"],
                    f"{value['n']:,}",
                    *scores,
                    told,
                    apart["outcome"] if apart else "",
                ]
            )
        parts.append(_table(rows))
        if each["others"]["values"]:
            parts.append("and {values:,} more values of {n:,} examples".format(**each["others"]))
    return "\n\n".join(["## Slices", *parts]) if parts else ""


def _examples(rows: list[Row], roles: dict[str, Any]) -> str:
    if not rows:
        return ""
    parts = ["## Examples, the worst first"]
    for row in rows:
        parts.append(
            f"**{_line(row['question'])}** (expected: {_line(row['expected'] or 'unknown')})"
        )
        parts.append(_listed(f"{role}: {_line(row['answers'][role])}" for role in roles))
    return "\n\n".join(parts)


def _listed(items: Any) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    """Returns a text that cannot break out of a cell."""
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """Returns a text as one line that is no markup."""
    return " ".join(text.split()).replace("<", "&lt;")
