"""`retort shadow`: registered students, real engines and real logs; MLflow and the webhook are
told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.cli import main
from retort.errors import SpecError
from retort.jobs.finding import rivals
from retort.jobs.shadow.compare import answer
from retort.records import Example, write_lines
from retort.spec import load
from retort.store import Store, open_store
from retort.tracking import ReleasedStudent, Tracker, open_registry, promote
from retort.tracking.server import tracking_uri
from tests.support import traffic as logs
from tests.support.source_rows import jsonl
from tests.support.tiny import save_model, write_job

NAMES = ("1", "2")  # the champion's version, then the challenger's


def question(number: int) -> str:
    return f"{number} + {number % 7} = ?"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A store with two students of one name, and the examples that they were trained on."""
    home = tmp_path_factory.mktemp("shadow")
    spec = load(write_job(home, "transformers"), ["prepare.scrub=[emails]"])[0]
    store = open_store(str(home / "store"))
    prepared = store.artifact("prepare", "e" * 16)
    turns = [[{"role": "user", "content": question(n)}] for n in range(1000, 1200)]
    examples = [Example(f"t{n}", "train", chat) for n, chat in enumerate(turns)]
    prepared.write("train-00000.jsonl", write_lines(examples))
    prepared.commit({})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for number, name in enumerate(NAMES):
            report, release = (store.artifact(stage, name * 16) for stage in ("report", "release"))
            report.write_json("report.json", {"ran": {"spec": spec.model_dump(mode="json")}})
            report.commit({})
            release.put_tree(save_model(home / f"student-{name}", 32, 1, seed=5 + number), "model")
            inputs = {"report": name * 16, "prepare": "e" * 16}
            release.commit({"ingredients": {"inputs": inputs}})
            tracker = Tracker(store, print)
            tracker.open_job("tiny", {}, "none")
            champion = "1" if number else "none"
            source = f"{release.uri}/model"
            tracker.register(ReleasedStudent("tiny", source, True, f"t{name}", name, champion))
            if not number:
                assert promote(open_registry(store), "tiny").done
    return home


@pytest.fixture
def store(home, monkeypatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RETORT_NOTIFY_URL", raising=False)
    monkeypatch.chdir(home)
    return open_store("store")


def spans(folder: Path, numbers: range, answers: dict[int, str], word: str = "") -> Path:
    """A log in which each request is of a conversation of its own, with its logged answer."""
    made = []
    for number in numbers:
        asked = {"role": "user", "content": f"{question(number)}{word}"}
        reply = {"role": "assistant", "content": answers.get(number, str(number + number % 7))}
        own = {
            "gen_ai.conversation.id": f"c{number}",
            "gen_ai.input.messages": [logs.parts(asked)],
            "gen_ai.output.messages": [logs.parts(reply)],
        }
        made.append(logs.span({**logs.CALL, **own}, number))
    path = folder / f"traffic{word.strip()}.jsonl"
    path.write_bytes(jsonl([logs.export(*made)]))
    return path


def run(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["shadow", *map(str, words), "--store", "store"])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@torch.inference_mode()
def greedy(folder: Path, text: str) -> str:
    """What a model answers, one token after the other."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    answer: list[int] = []
    while len(answer) < 12 and (not answer or answer[-1] != tokenizer.eos_token_id):
        answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_a_name_stands_for_its_challenger_against_its_champion(store):
    judged, champion = rivals(store, "tiny", None)
    assert (judged.label, champion.label) == ("tiny/2", "tiny/1")
    assert [m.label for m in rivals(store, "tiny/1", "2")] == ["tiny/1", "tiny/2"]
    assert rivals(store, "tiny/1", None)[1] is None  # the champion needs no champion
    assert rivals(store, str(store.uri).replace("store", "student-1"), None)[1] is None
    with pytest.raises(SpecError, match="no model 'tony'"):
        rivals(store, "tony", None)


def test_two_students_answer_what_was_asked_and_disagreements_come_first(store, home, capsys):
    answers = {n: greedy(home / "student-1", question(n)) for n in range(1, 13)}
    right = {n: text for n, text in answers.items() if n % 2}
    path = spans(home, range(1, 13), right | {4: "Ask ada@example.org"})
    task = ("--task-type", "conversation", "--json")
    code, out, err = run(capsys, "tiny", "--traffic", path, "--engine", "transformers", *task)
    assert code == 0, err
    found = json.loads(out)
    assert found["models"] == {"challenger": "tiny/2", "champion": "tiny/1"}
    assert (found["num_requests"], found["metric"]) == (12, "rouge_l")
    by_prompt = {each["prompt"]: each for each in found["requests"]}
    for number in (1, 2, 12):
        each = by_prompt[question(number)]
        assert each["answers"]["champion"] == answers[number]
        assert each["answers"]["challenger"] == greedy(home / "student-2", question(number))
    assert by_prompt[question(4)]["logged"] == "Ask [EMAIL]"  # scrubbed as the job's own rows
    agreement = found["metrics"]["champion"]["agreement"]
    assert agreement["value"] == pytest.approx(0.5) and agreement["low"] > 0
    gaps = [e["scores"]["challenger"] - e["scores"]["champion"] for e in found["requests"]]
    assert [abs(gap) for gap in gaps] == sorted(map(abs, gaps), reverse=True)
    assert found["difference"]["value"] == pytest.approx(sum(gaps) / 12)
    assert found["verdict"].startswith(("tiny/2 is worse than tiny/1", "these logged requests"))


def test_a_sample_a_window_and_metadata_choose_and_mlflow_is_told(store, home, capsys):
    path = spans(home, range(1, 41), {})
    echo = ("--engine", "echo", "--json")
    code, out, _ = run(capsys, "tiny", "--traffic", path, "--sample", 7, *echo)
    first = json.loads(out)
    assert (code, first["num_requests"]) == (0, 7)
    for each in first["requests"]:
        assert each["answers"] == {"champion": each["prompt"], "challenger": each["prompt"]}
        assert each["metadata"]["service"] == "support"
    assert first["difference"]["value"] == 0 and first["metric"] == "accuracy"
    later = ("--since", "2026-11-29T10:00:00.250Z", "--where", "customer.tier=gold")
    code, out, err = run(capsys, "tiny", "--traffic", path, "--sample", 7, *later, *echo)
    assert code == 0, err
    assert json.loads(out)["requests"] == first["requests"]
    for wrong in (("--until", "2026-11-29T10:00:00"), ("--where", "service=shop")):
        code, _, err = run(capsys, "tiny", "--traffic", path, *wrong, *echo)
        assert code == 2 and "left out of logged traffic: 40 o" in err
        assert "--traffic: " in err and "holds no usable row" in err
    client = MlflowClient(tracking_uri(store))
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], "tags.`retort.stage` = 'shadow'")
    assert runs and {"difference", "champion.accuracy"} <= runs[0].data.metrics.keys()
    assert runs[0].data.tags["retort.model"] == "tiny/2"


@pytest.fixture
def pager(monkeypatch):
    """A webhook, and what it was told."""
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RETORT_NOTIFY_URL", f"http://127.0.0.1:{server.server_port}/")
        yield told
        server.shutdown()


def test_drift_is_an_alarm_that_someone_is_told_and_its_absence_is_none(store, home, pager, capsys):
    drift = ("--drift", "--sample", 0)
    same = spans(home, range(1300, 1400), {})
    code, out, err = run(capsys, "tiny", "--traffic", same, *drift)
    assert (code, pager) == (0, []), err
    assert "the prompts are those of training: p = " in out
    other = spans(home, range(1300, 1400), {}, " Bitte auf Deutsch")
    code, out, _ = run(capsys, "tiny", "--traffic", other, *drift)
    assert code == 3 and "are not those of the training any more: p = 0.0005" in out
    assert "deutsch: 100.0%, in training 0.0%" in out
    (message,) = pager
    assert message["text"].startswith("Retort: the prompts are not those that tiny/2 was trained")
    client = MlflowClient(tracking_uri(store))
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], "metrics.`drift.alarm` = 1")
    assert len(runs) == 1 and runs[0].data.metrics["drift.p_value"] == 0.0005


def test_a_webhook_that_does_not_answer_costs_a_warning(store, home, monkeypatch, capsys):
    monkeypatch.setenv("RETORT_NOTIFY_URL", "http://127.0.0.1:9/secret")
    other = spans(home, range(1300, 1400), {}, " Bitte auf Deutsch")
    code, _, err = run(capsys, "tiny", "--traffic", other, "--drift", "--sample", 0)
    assert code == 3 and "warning: RETORT_NOTIFY_URL was not told" in err and "secret" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--where", "tier"), "--where tier: write it as KEY=VALUE"),
        (("--since", "soon"), "--since soon: give a date or a time"),
        (("--sample", 0), "--sample 0: ask for 1 request or more, or for --drift"),
        (("--against", "9"), "no model 'tiny/9'"),
        (("--drift",), "--drift: the window has 5 prompts, and drift needs 30"),
    ],
)
def test_what_cannot_be_done_is_said(store, home, capsys, words, message):
    path = spans(home, range(1, 6), {})
    code, _, err = run(capsys, "tiny", "--traffic", path, "--engine", "echo", *words)
    assert code == 2 and message in err


def test_the_answers_of_the_child_are_those_of_the_engine():
    spec = {
        "name": "t",
        "prepare": {"task_type": "conversation", "train": "x", "test": "x"},
        "generate": {"teacher": "none", "top_k": 0},
        "train": {"student": "none"},
        "evaluate": {"engine": "echo"},
    }
    from retort.events import SILENT

    chat = [{"role": "user", "content": "hello"}]
    (found,) = answer(spec, "none", [["a", chat, None]], SILENT)
    assert (found["id"], found["text"], found["state"]) == ("a", "hello", "accepted")
