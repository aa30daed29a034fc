"""What a user adds from outside the repository: as docs/plug-ins.md shows it, in one file."""

import json
import re
from functools import partial

import pytest
import torch
import yaml

from retort.data.filters import candidate
from retort.errors import SpecError
from retort.jobs.source_digests import source_digests
from retort.losses import Target
from retort.plugins import FOLDER, check_options, find_function, source_digest
from retort.spec import JobSpec, load, recipes
from tests.conftest import ROOT
from tests.support.filter_items import item
from tests.support.tiny import write_job

PAGE = (ROOT / "docs/plug-ins.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture
def rhymes(tmp_path):
    """A job whose task type is the page's file, beside it."""
    path = write_job(tmp_path, "echo")
    (code,) = (block for block in BLOCKS if "def prompt(" in block)
    (tmp_path / "my_types").mkdir()
    (tmp_path / "my_types/rhymes.py").write_text(code)
    (tmp_path / "my_filters.py").write_text(
        "def brief(item, *, most: int = 5):\n"
        "    return 'too long' if len(item.text) > most else None\n"
    )
    words = ["cat", "dog", "sun", "sea", "ring", "rose", "bell", "king", "snow", "tree"]
    for split in ("train", "validation", "test"):
        rows = [{"word": f"{split} {word}", "rhyme": word[1:]} for word in words]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"data/{split}.jsonl").write_text(text + ('{"x": 1}\n' * (split == "train")))
    job = yaml.safe_load(path.read_text())
    job["prepare"] |= {"task_type": "my_types.rhymes", "max_bad_ratio": 0.2}
    job["curate"] = {"filters": [{"name": "my_filters:brief", "most": 10_000}]}
    path.write_text(yaml.safe_dump(job))
    return path


def test_a_sixth_task_type_and_a_filter_run_from_one_file_beside_the_job(rhymes, retort, tmp_path):
    retort = partial(retort, XDG_CONFIG_HOME=str(tmp_path / "config"))
    refused = retort("validate", rhymes)
    assert refused.returncode == 2
    assert "my_filters:brief, my_types.rhymes" in refused.stderr
    trusted = retort("validate", rhymes, "--trust")
    assert f"plug-in my_types.rhymes: code of {tmp_path}" in trusted.stdout
    done = retort("run", rhymes, "--store", tmp_path / "store", "--json")
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report["comparison"]["metric"] == "accuracy"
    assert report["data"]["prepare"]["num_quarantined"] == 1
    assert report["data"]["card"]["recognised"] == {"columns": 30}


def test_a_plug_ins_own_source_decides_what_is_stale(rhymes, monkeypatch):
    monkeypatch.setenv(FOLDER, str(rhymes.parent))
    spec = JobSpec.model_validate(yaml.safe_load(rhymes.read_text()))
    before = source_digest("my_types.rhymes")
    made = {name: recipes(spec, {"prepare.plug_ins": name}) for name in ("one", "two")}
    assert made["one"]["prepare"].name != made["two"]["prepare"].name
    file = rhymes.parent / "my_types/rhymes.py"
    file.write_text(file.read_text() + "# changed\n")
    assert source_digest("my_types.rhymes") != before
    with pytest.raises(SpecError, match="there is no module nowhere"):
        source_digest("nowhere:x")


def test_a_filters_file_stands_beside_the_job_and_counts_by_its_content(tmp_path):
    path = write_job(tmp_path, "echo")
    job = yaml.safe_load(path.read_text())
    job["curate"] = {"filters": [{"name": "json_valid", "schema_file": "answer.json"}]}
    path.write_text(yaml.safe_dump(job))
    names = []
    for schema in ('{"type": "object"}', '{"type": "array"}', '{"type": "object"}'):
        (tmp_path / "answer.json").write_text(schema)
        spec, _ = load(path)
        assert spec.curate.filters[0].options == {"schema_file": str(tmp_path / "answer.json")}
        names.append(recipes(spec, source_digests(spec))["curate"].name)
    assert names[0] == names[2] != names[1]
    (tmp_path / "answer.json").unlink()
    with pytest.raises(SpecError, match=r"answer\.json"):
        source_digests(load(path)[0])


def test_the_pages_filter_loss_and_metric_are_plug_ins(tmp_path, monkeypatch):
    (code,) = (block for block in BLOCKS if "def polite(" in block)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    polite = candidate.check("mine:polite", {"word": "thanks"})
    assert polite(item("No."), word="thanks") == "does not say thanks"
    assert polite(item("Thanks!"), word="thanks") is None
    check_options("loss", "mine:squared_gap", "retort.losses", [])
    loss = find_function("loss", "mine:squared_gap", "retort.losses")
    logits = torch.randn(5, 7, requires_grad=True)
    equal = Target(torch.zeros(5, dtype=torch.long), teacher_logits_NV=logits.detach())
    other = Target(torch.zeros(5, dtype=torch.long), teacher_logits_NV=torch.randn(5, 7))
    assert loss(logits, equal, 1.0).item() < 1e-9 < loss(logits, other, 1.0).item()
    metric = find_function("metric", "mine:says_please", "retort.metrics")
    assert metric(None, "Please do.", None) == 1.0
