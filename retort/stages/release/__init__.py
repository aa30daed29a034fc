"""release: the student as a Hugging Face folder with its model card, ready to be registered.

The weights lie once, here; beside them are the files by which MLflow loads and serves them, and the
registry points to both. A refused student is kept and tagged, so
that it can be looked at, and is never promoted. Nothing in the folder runs code when it is loaded.
"""

import json
from pathlib import Path

from retort.data.encoding import load_tokenizer
from retort.errors import StageError
from retort.metrics.comparison import ReportContent, read_content
from retort.metrics.comparison.shapes import Latency
from retort.records import JsonObject
from retort.stages.release.exports import add_exports
from retort.stages.release.model_card import model_card
from retort.stages.stage import Stage
from retort.store import MODEL
from retort.tracking import flavor

# Loading these can execute whatever they hold (pickle).
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".py")
CONFIG, GENERATION = "config.json", "generation_config.json"


def release(stage: Stage) -> JsonObject:
    """Writes `model/`, `exports/` and `gate.json`; returns the facts for the registry."""
    raw = stage.input("report").read_json("report.json")
    content = read_content(raw)
    stage.out.write_json("gate.json", raw["gate"])
    with stage.input("train").local_copy("student") as student:
        _check_safe(student)
        generation = generation_config(student)
        stage.out.put_tree(student, MODEL)
        for name, data in flavor.files(stage.spec.registered_name, MODEL, student).items():
            stage.out.write(name, data)
    stage.out.write_json(f"{MODEL}/{GENERATION}", generation)
    stage.out.write(f"{MODEL}/README.md", model_card(stage, content).encode())
    exports = add_exports(stage, content)
    stage.report.progress(1, 1, "model")
    return {
        "registered_model": stage.spec.registered_name,
        "source": f"{stage.out.uri}/{MODEL}",
        "gate_passed": content.gate.passed,
        "scores": scores(content),
        **(exports if content.exports else {}),
    }


def generation_config(student: Path) -> JsonObject:
    """Returns the student's generation config with the token that ends an answer: without it an
    engine generates up to its limit. Raises `StageError` where the student names no end token."""
    generation, config = _json(student / GENERATION), _json(student / CONFIG)
    if generation.get("eos_token_id") is None:
        ends = config.get("eos_token_id")
        ends = load_tokenizer(str(student)).eos_token_id if ends is None else ends
        if ends is None:
            raise StageError(
                "release: neither the student's configuration nor its tokenizer says which token "
                "ends an answer: add eos_token to the base's tokenizer_config.json (train.student)"
            )
        generation["eos_token_id"] = ends
    return generation


def scores(content: ReportContent) -> dict[str, float]:
    """Returns the student's scores with their intervals and what it takes, for its page in MLflow.

    Seconds, bytes and requests a second; what is unknown is left out.
    """
    student, compared = content.models["student"], content.comparison
    latency = student.latency_seconds or Latency()
    known: dict[str, float | None] = {}
    for name, metric in student.metrics.items():
        known |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
    known |= {
        "retention": compared.retention,
        "gain": compared.gain,
        "latency_seconds_p50": latency.p50,
        "latency_seconds_p95": latency.p95,
        "requests_per_second": student.requests_per_second,
        "tokens_per_second": student.tokens_per_second,
        "weights_bytes": student.weights_bytes,
        "peak_memory_bytes": student.peak_memory_bytes,
    }
    return {name: float(value) for name, value in known.items() if value is not None}


def _check_safe(student: Path) -> None:
    """Raises `StageError` for a file that could run code where the student is loaded."""
    unsafe = sorted(path.name for path in student.rglob("*") if path.suffix in UNSAFE)
    if unsafe:
        raise StageError(
            f"release: {', '.join(unsafe)} may run code when the student is loaded; the weights "
            "must be *.safetensors alone: take a base without such files (train.student)"
        )


def _json(path: Path) -> JsonObject:
    content: JsonObject = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
