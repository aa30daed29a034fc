"""The pages of Prefect and MLflow in a real browser: a job is started in the form, fails, is
mended, is retried with the button and looked at, and links lead from each of the two to the other.
"""

import json
import os
import re
import stat
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page, expect

from retort.client.server import JOB_TAG
from tests.conftest import ask
from tests.support import command, foreign, pages
from tests.support.browser import needs_browser
from tests.support.pages import LEARNING_RATE, field, submit
from tests.support.servers import free_port
from tests.support.tiny import write_job
from tests.support.upping import up

pytestmark = needs_browser
FILTER = '''
from pathlib import Path


def listed(item):
    """Keeps the answers with a word of a list."""
    words = Path(__file__).with_name("words.txt").read_text().split()
    return None if any(word in item.text for word in words) else "not listed"
'''


@dataclass(frozen=True)
class Desk:
    """What a person has before them: a browser, a job, and where Prefect and MLflow are."""

    page: Page
    folder: Path
    job: dict
    prefect: str
    mlflow: str
    login: dict[str, str]

    def ask(self, path, payload=None):
        """What Prefect answers its owner."""
        return ask(f"{self.prefect}/api{path}", payload, self.login["PREFECT_API_AUTH_STRING"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    ports = {"prefect": free_port(), "mlflow": free_port()}
    job = yaml.safe_load(write_job(folder, "echo").read_text())
    for first, split in enumerate(("train", "validation", "test")):
        # The test double is right, and no row asks what another does.
        numbers = range(1000 * first + 100, 1000 * first + 116)
        rows = [{"question": f"Say {number}.", "answer": str(number)} for number in numbers]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"data/{split}.jsonl").write_text(text)
    (folder / "my_filters.py").write_text(FILTER)
    job["curate"]["filters"] += ["my_filters:listed"]
    job["report"] = {"gate": {"beat_base": False}}
    # MLflow's address for people is another than for jobs.
    links = f"http://localhost:{ports['mlflow']}"
    env = {"RETORT_PLUG_INS": str(folder), "RETORT_MLFLOW_URL": links}
    env |= {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    prefect = f"http://127.0.0.1:{ports['prefect']}"
    with up(folder, ports, **env) as login:
        password = login["PREFECT_API_AUTH_STRING"]
        with pages.browsing(password) as page:
            pages.log_in(page, prefect, password)
            yield Desk(page, folder, job, prefect, links, login)


def runs(desk):
    return desk.ask("/flow_runs/filter", {})


def test_the_form_says_what_a_knob_does_its_choices_and_its_bounds(desk):
    pages.open_form(desk.page, desk.prefect)
    expect(field(desk.page, LEARNING_RATE)).to_have_value("0.00002")
    expect(desk.page.get_by_text("[ratio of rows, at least 0, below 1]")).to_have_count(2)
    # A number that may be left out is an empty field, and no choice of types.
    expect(field(desk.page, "At most so many train rows of each group.")).to_have_value("")
    pages.choice(desk.page, "How the learning rate decays").press("ArrowDown")
    for name in ("linear", "constant"):
        expect(desk.page.get_by_role("option", name=name)).to_be_visible()


def test_what_is_wrong_is_refused_on_the_page_and_nothing_is_scheduled(desk):
    page = desk.page
    pages.open_form(page, desk.prefect)
    submit(page)
    expect(page.get_by_text("'student' is a required property")).to_be_visible()
    for told, value in {
        "Name of the job": "tiny",
        "What the teacher answers to be learned.": "data/train.jsonl",
        "The model to imitate; not given where there are several teachers.": "models/teacher",
        "The base model that becomes the student; or": "models/base",
        LEARNING_RATE: "-1",
    }.items():
        field(page, told).fill(value)
    submit(page)
    refused = "field 'spec.train.learning_rate'. Failure reason: -1 is less than or equal"
    expect(page.get_by_text(refused).first).to_be_visible()
    pages.write_as_json(page)
    pages.paste(page, {**desk.job, "train": {**desk.job["train"], "learnin_rate": 1}})
    submit(page)
    expect(page.get_by_text("'learnin_rate' was unexpected").first).to_be_visible()
    assert runs(desk) == []


def test_a_job_is_started_mended_retried_and_reviewed(desk):
    page = desk.page
    pages.open_form(page, desk.prefect)
    pages.write_as_json(page)
    pages.paste(page, desk.job)
    submit(page)
    expect(page.get_by_text("scheduled to start now").first).to_be_visible()
    run = failed(desk)
    (desk.folder / "words.txt").write_text("Say")
    pages.retry(page)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    expect(page.get_by_text("Cached", exact=True)).to_have_count(2)
    for stage in ("prepare", "generate", "curate", "train", "evaluate", "report", "release"):
        expect(page.get_by_role("link", name=stage, exact=True).last).to_be_visible()
    (standing,) = runs(desk)
    assert (standing["id"], standing["state_name"]) == (run, "Completed")
    back = review(desk)
    expect(back.get_by_text("Completed", exact=True).first).to_be_visible()
    assert back.url.endswith(run)


def failed(desk):
    """Waits on its page until the run has failed, and says why; its id."""
    page = desk.page
    page.goto(f"{desk.prefect}/runs")
    page.get_by_role("link", name="tiny", exact=True).first.click()
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("generate: done")).to_be_visible()
    why = page.get_by_text("FileNotFoundError").filter(has_text="words.txt")
    expect(why.first).to_be_visible()
    # The process of a run that has just failed is still about to end.
    expect(page.get_by_text(re.compile("^Process for flow run .* exited"))).to_be_visible()
    return page.url.rpartition("/")[2]


def review(desk):
    """Goes from the run to its pages in MLflow; the page to which the link there leads back."""
    page = desk.page
    page.get_by_text("Artifacts", exact=True).click()
    for key in ("train-progress", "comparison", "report"):
        expect(page.get_by_text(key, exact=True).last).to_be_visible()
    page.get_by_text("mlflow-run", exact=True).last.click()
    mlflow = pages.follow(page.get_by_role("link", name="MLflow run"))
    assert mlflow.url.startswith(desk.mlflow)
    for stage in ("prepare", "train", "release"):
        expect(mlflow.get_by_role("link", name=stage, exact=True).first).to_be_visible()
    expect(mlflow.get_by_text("Finished").first).to_be_visible()
    back = pages.follow(mlflow.get_by_role("link", name="This run in Prefect"))
    mlflow.get_by_role("tab", name="Artifacts").click()
    expect(mlflow.get_by_text("data_card.svg", exact=True)).to_be_visible()
    mlflow.get_by_text("report.html", exact=True).click()
    kept = "keeps 100.0% of the teacher's accuracy"
    expect(mlflow.frame_locator("iframe").get_by_text(kept).first).to_be_visible()
    mlflow.get_by_role("tab", name="Overview").click()
    mlflow.get_by_role("link", name="train", exact=True).first.click()
    mlflow.get_by_role("tab", name="Model metrics").click()
    expect(mlflow.get_by_role("heading", name="loss", exact=True)).to_be_visible()
    mlflow.goto(f"{desk.mlflow}/#/models/tiny/versions/1")
    expect(mlflow.get_by_text("challenger").first).to_be_visible()
    mlflow.close()
    return back


def retort(desk, *words):
    """What the command says, in a shell that has read login.env."""
    return command.run(*words, cwd=desk.folder, **desk.login)


def test_a_job_is_deployed_and_started_without_filling_the_form(desk):
    nightly = retort(desk, "deploy", "job.yaml", "--set=name=mine", "--schedule", "0 2 * * *")
    assert nightly.returncode == 0, nightly.stderr
    page, address = desk.page, nightly.stdout.split()[1]
    page.goto(address)
    expect(page.get_by_text("At 02:00 AM every day").first).to_be_visible()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Quick run").click()
    expect(
        page.get_by_text("Run from the Prefect UI with defaults")
        .or_(page.get_by_text("scheduled to start now"))
        .first
    ).to_be_visible()
    (started,) = (run for run in runs(desk) if JOB_TAG in run["tags"] and not run["auto_scheduled"])
    assert started["parameters"]["spec"]["name"] == "mine"
    again = retort(desk, "deploy", "job.yaml", "--set=name=mine", "--set=train.seed=7")
    assert again.stdout.split()[1] == address
    found = desk.ask("/deployments/name/distill/mine")
    assert found["parameters"]["spec"]["train"]["seed"] == 7
    assert found["schedules"] == []
    assert found["job_variables"] == desk.ask("/deployments/name/distill/process")["job_variables"]
    taken = retort(desk, "deploy", "job.yaml", "--set=name=process")
    assert taken.returncode == 2 and "another name" in taken.stderr
    wrong = retort(desk, "deploy", "job.yaml", "--schedule", "at night")
    assert wrong.returncode == 2 and "not a cron expression" in wrong.stderr
    nowhere = retort(desk, "deploy", "job.yaml", "--pool", "none")
    assert nowhere.returncode == 2 and "retort-process" in nowhere.stderr
    assert retort(desk, "deploy", "job.yaml", "--set=name=mine", "--remove").returncode == 0
    with pytest.raises(urllib.error.HTTPError, match="404"):
        desk.ask("/deployments/name/distill/mine")
    assert retort(desk, "deploy", "job.yaml", "--set=name=mine", "--remove").returncode == 2


def counted(desk):
    """How many runs there are in Prefect and in MLflow."""
    mlflow = desk.mlflow.replace("localhost", "127.0.0.1") + "/api/2.0/mlflow/runs/search"
    login = desk.login["PREFECT_API_AUTH_STRING"]
    return len(runs(desk)), len(ask(mlflow, {"experiment_ids": ["0"]}, login).get("runs", []))


def test_a_page_of_another_origin_can_start_and_read_nothing(desk):
    deployment = desk.ask("/deployments/name/distill/process")["id"]
    run = desk.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": {"spec": desk.job}})
    there = {"P": desk.prefect, "M": desk.mlflow, "deployment": deployment, "run": run["id"]}
    before, page = counted(desk), desk.page.context.new_page()
    # The browser of the owner, who is logged in at both.
    page.goto(f"{desk.mlflow}/#/experiments")
    expect(page.get_by_text("Default").first).to_be_visible()
    with foreign.serving() as port:
        for host in ("127.0.0.1", "localhost", "evil.test"):
            page.goto(f"http://{host}:{port}/")
            for name, way in foreign.WAYS.items():
                got = page.evaluate(foreign.SCRIPT, {**there, "way": way})
                assert got == "", (host, name, got[:200])
    # A name of a stranger's that now leads here: the page and the server have one origin.
    page.goto(desk.prefect.replace("127.0.0.1", "evil.test"))
    for path in ("/api/admin/settings", "/api/deployments/name/distill/process"):
        assert page.evaluate("async (path) => (await fetch(path)).status", path) == 401
    port = desk.mlflow.rpartition(":")[2]
    assert page.goto(f"http://evil.test:{port}/ajax-api/2.0/mlflow/experiments/get").status == 403
    page.close()
    assert counted(desk) == before


def test_another_user_of_the_machine_can_read_no_key_and_ask_no_server(desk):
    state = desk.folder / ".retort"
    for path in (state / "login.env", state / "mlflow.db", *(state / "logs").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((state / "prefect").stat().st_mode) == 0o700
    mlflow = desk.login["MLFLOW_TRACKING_URI"]
    for url in (f"{desk.prefect}/api/flow_runs/filter", f"{mlflow}/api/2.0/mlflow/runs/search"):
        for login in ("", "retort:", "retort:retort"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                ask(url, {}, login)
    refused = command.run("list", "--store", os.devnull, PREFECT_API_URL=f"{desk.prefect}/api")
    assert refused.returncode == 1 and "login.env" in refused.stderr
    assert retort(desk, "list").returncode == 0
