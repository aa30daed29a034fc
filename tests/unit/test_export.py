"""Exports: what their names mean, what is measured of them, and which may go out."""

import math
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.errors import SpecError
from retort.jobs import serve
from retort.jobs.compare.runs import Run
from retort.jobs.compare.tables import compare
from retort.metrics.comparison import exports, formatting
from retort.metrics.comparison.shapes import (
    Difference,
    Estimate,
    ExportedStudent,
    as_json,
    read_content,
)
from retort.spec import build, recipes
from retort.spec.report import ExportGate
from retort.stages.evaluate.fidelity import divergence
from retort.stages.export import texts
from retort.stages.export.formats import find_format
from retort.stages.report.gate import judge_export
from retort.stages.report.plots import sizes
from retort.store.signals import captured
from tests.support.report_content import answered, content
from tests.support.tiny import make_tokenizer
from tests.unit.test_spec import MINIMAL, changed

READ = {"is_read": True, "num_texts": 7, "difference": None}


def names(raw) -> dict[str, str]:
    return {name: recipe.name for name, recipe in recipes(build(raw), {}).items()}


def test_a_further_format_makes_only_itself_and_what_shows_it():
    one = names(changed(export={"formats": ["gguf:q8_0"]}))
    two = names(changed(export={"formats": ["gguf:q8_0", "onnx:int4"]}))
    assert {"export-gguf-q8_0", "evaluate-gguf-q8_0"} <= one.keys() - names(MINIMAL).keys()
    differing = {name for name in two if one.get(name) != two[name]}
    assert differing == {"export-onnx-int4", "evaluate-onnx-int4", "report", "release"}
    plain = names(MINIMAL)
    assert {name for name in plain if plain[name] != one[name]} == {"report", "release"}
    other = names(changed(export={"formats": ["gguf:q8_0"], "num_examples": 9}))
    assert other["export-gguf-q8_0"] != one["export-gguf-q8_0"]


@pytest.mark.parametrize("formats", [["gguf"], ["gguf:"], [":q8_0"], ["a b:c"], ["x:y", "x:y"]])
def test_what_is_no_format_or_named_twice_is_refused(formats):
    with pytest.raises(SpecError, match=r"export\.formats"):
        build(changed(export={"formats": formats}))


def test_an_unknown_format_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"unknown export format 'ggfu' \(did you mean 'gguf'"):
        find_format("ggfu:q8_0")
    with pytest.raises(SpecError, match=r"unknown quantization of gguf 'q8'.*q8_0"):
        find_format("gguf:q8")


def test_the_divergence_is_that_over_the_top_ids_and_one_bucket_and_never_above_the_whole():
    rng = np.random.default_rng(3)
    own, theirs = (
        torch.log_softmax(torch.tensor(rng.normal(size=(5, 40)) * 2), dim=-1).numpy()
        for _ in range(2)
    )
    whole = (np.exp(own) * (own - theirs)).sum(axis=1)
    for top_k in (1, 7, 40):
        ids = np.argsort(-theirs, axis=1)[:, :top_k]
        kept = np.take_along_axis(theirs, ids, axis=1).astype(np.float32)
        signal = captured(ids.astype(np.int32), kept, ids[:, 0].astype(np.int32), kept[:, 0])
        found = divergence(own, signal)
        for row, top in enumerate(ids):
            rest = [i for i in range(40) if i not in top]
            p, q = np.exp(own[row]), np.exp(theirs[row])
            slow = sum(p[i] * math.log(p[i] / q[i]) for i in top)
            if rest:
                slow += p[rest].sum() * math.log(p[rest].sum() / q[rest].sum())
            assert found[row] == pytest.approx(slow, abs=2e-6)
        assert (found <= whole + 2e-6).all()
    assert found == pytest.approx(whole, abs=2e-6)
    same = np.take_along_axis(own, ids, axis=1).astype(np.float32)
    equal = captured(ids.astype(np.int32), same, ids[:, 0].astype(np.int32), same[:, 0])
    assert divergence(own, equal) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("difference", "gate", "passes"),
    [
        (Difference(-0.004, -0.009, 0.002), {}, True),
        (Difference(-0.004, -0.011, 0.002), {}, False),
        (Difference(-0.004, -0.011, 0.002), {"on_bound": False}, True),
        (Difference(-0.02, -0.03, -0.01), {"on_bound": False}, False),
        (Difference(-0.02, -0.03, -0.01), {"max_loss": 0.03}, True),
        (Difference(0.0, 0.0, 0.0), {"max_loss": 0}, True),
    ],
)
def test_an_export_may_lose_what_the_gate_allows(difference, gate, passes):
    check = judge_export(difference, None, ExportGate(**gate), "accuracy", {"tokenizer": READ})
    assert (check.passed, check.name) == (passes, "loss")


@pytest.mark.parametrize(
    ("kl", "gate", "passes"),
    [
        (Estimate(2e-5, 1e-5, 4e-5), {"max_kl": 5e-5}, True),
        (Estimate(2e-5, 1e-5, 4e-5), {"max_kl": 3e-5}, False),
        (Estimate(2e-5, 1e-5, 4e-5), {"max_kl": 3e-5, "on_bound": False}, True),
        (None, {"max_kl": 1.0}, False),
        (Estimate(9.0, 8.0, 10.0), {}, True),
    ],
)
def test_an_export_may_be_bound_to_the_students_distributions(kl, gate, passes):
    same = Difference(0.0, 0.0, 0.0)
    assert judge_export(same, kl, ExportGate(**gate), "accuracy", {}).passed == passes


def test_what_was_not_measured_and_another_tokenizer_never_pass():
    assert not judge_export(None, None, ExportGate(), "accuracy", {"tokenizer": READ}).passed
    perfect = Difference(0.5, 0.4, 0.6)
    other = {"template": {"difference": "other ids"}}
    check = judge_export(perfect, None, ExportGate(), "accuracy", other)
    assert (check.passed, check.reason) == (False, "other ids")


def exported():
    """A report with two exported students, of which one is refused."""
    plain = content(answered())
    student = plain.models["student"]
    smaller = replace(
        student,
        engine="llamacpp",
        weights_bytes=student.weights_bytes // 4,
        metrics={**student.metrics, "kl_to_student": Estimate(8.2e-6, 7e-6, 9e-6, 64)},
    )
    found = {}
    for number, (form, loss) in enumerate({"gguf:q4_0": 0.0, "onnx:int4": 0.2}.items()):
        gap = Difference(-loss, -loss - 0.002, -loss + 0.002)
        check = judge_export(gap, None, ExportGate(), "accuracy", {"tokenizer": READ})
        against = {"student": gap, "teacher": gap}
        model = replace(smaller, load_seconds=1.0 + number)
        found[form.replace(":", "-")] = ExportedStudent(form, model, check, against)
    return replace(plain, exports=found)


def test_the_table_has_a_column_an_export_beside_the_student():
    rows = {name: cells for name, *cells in exports(exported())}
    assert rows[""] == ["student", "gguf:q4_0", "onnx:int4"]
    assert rows["minus the student"] == ["", "+0.0 (-0.2 to +0.2)", "-20.0 (-20.2 to -19.8)"]
    assert rows["KL to the student, nats"] == ["", "8.2e-06", "8.2e-06"]
    assert rows["may go out"] == ["", "yes", "refused"]
    assert {len(cells) for cells in rows.values()} == {3}
    assert exports(content(answered())) == []


def test_the_content_is_read_as_it_was_written_and_drawn():
    whole = exported()
    assert read_content(as_json(whole)).exports == whole.exports
    picture = sizes(whole)
    assert picture and "gguf:q4_0" in picture
    assert sizes(content(answered())) is None


def test_texts_of_many_kinds_are_the_same_each_time():
    marks = list(make_tokenizer().all_special_tokens)
    found = texts.of_all_kinds(iter(["my own", "and mine"]), marks)
    assert found == texts.of_all_kinds(iter(["my own", "and mine"]), marks)
    assert found[:2] == ["my own", "and mine"]
    assert len(found) == texts.NUM_TEXTS
    assert len(set(found)) > 0.95 * len(found)
    joined = "".join(found)
    for mark in ("<assistant>", "\ufffd", "👍", "\u3000", "мягких", "0x7F", "\r\n"):
        assert mark in joined


def test_beyond_loopback_a_key_is_needed(monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"):
        serve.check(serve.Address("x", host))
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(SpecError, match=f"put one into the environment variable {serve.KEY}"):
            serve.check(serve.Address("x", host))
        monkeypatch.setenv(serve.KEY, "k")
        serve.check(serve.Address("x", host))
        monkeypatch.delenv(serve.KEY)


def test_a_job_without_exports_loads_no_package_of_theirs():
    heavy = ("gguf", "xllamacpp", "onnxruntime_genai", "onnx", "compressed_tensors")
    code = (
        "import sys; import retort.jobs.preflight, retort.stages.export, retort.stages.evaluate;"
        f"assert not set({heavy!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_comparison_of_runs_has_a_row_for_each_format():
    plain, other = content(answered()), exported()
    runs = [Run("a", "a/report.json", plain), Run("b", "b/report.json", other)]
    rows = {name: cells for name, *cells in compare(runs).gains}
    score = formatting.percent(plain.models["student"].metrics["accuracy"].value)
    size = formatting.count_bytes(plain.models["student"].weights_bytes // 4)
    assert rows["gguf:q4_0"] == ["", f"{size}, {score} (+0.0)"]
    assert rows["onnx:int4"] == ["", f"{size}, {score} (-20.0), refused"]


def test_a_port_that_another_server_has_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = serve.Address("x", port=other.getsockname()[1])
        refused = pytest.raises(SpecError, match=f"--port {address.port}.*give another port")
        with refused, serve.serving(Path("nowhere"), None, address):
            pass


def test_a_format_of_the_users_own_makes_no_other_export_anew():
    spec = build(changed(export={"formats": ["gguf:q8_0", "mine.own:q"]}))
    one, two = (recipes(spec, {"export.plug_ins": digest}) for digest in ("a", "b"))
    differing = {name for name in one if one[name].name != two[name].name}
    assert differing == {"export-mine-own-q", "evaluate-mine-own-q", "report", "release"}
