"""One run of one job: decides for each stage whether its artifact is cached, otherwise makes it.

The manifest is the cache. A stage is reused when its artifact is whole and was made from inputs
with the same content; nothing else counts, so a moved store or a new machine keeps everything.
`train` runs once for the student and once for each control, under names of their own, and
`evaluate` once more for the champion that the student is compared with.
"""

import _thread
import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from retort import processes
from retort.data import sources
from retort.errors import DamagedError
from retort.events import Event, Reporter
from retort.jobs import preflight
from retort.jobs.placed import placed
from retort.jobs.source_digests import source_digests
from retort.processes import machine
from retort.processes.resident import Resident
from retort.records import SPLITS, JsonObject
from retort.spec import JobSpec, StageName
from retort.stages.engine_settings import measured_runtime, resident_of
from retort.stages.evaluate.measure import measure_turns
from retort.stages.stage import Stage
from retort.stages.train.curve import PAUSED
from retort.store import MANIFEST, Artifact, Folder, InputFolder, Store
from retort.store.leases import Holder
from retort.tracking import NONE, ReleasedStudent, Tracker, champion

# The first words of the names of what is made round after round by one engine: `rollouts-1` ...
RESIDENT = ("rollouts", "scores")
SMALL_FILES = (".md", ".txt", ".json", ".svg")
MAX_ARTIFACT_BYTES = 1_000_000
LOOK_SECONDS = 1.0
# Four times what vLLM's libraries take.
LIBRARIES_BYTES = 3 << 30
# Files for other programs, with a line for each example or round, or that repeat other files.
WORKINGS = ("statistics-", "measures-", "pictures.")
Listener = Callable[[str, Event], None]


class JobRun:
    """A job on its store, with its recipes, its tracker and the listener to its stages.

    `kind` says what is done with the job where it is not run to its report: plan ...
    """

    def __init__(
        self,
        spec: JobSpec,
        store: Store,
        force: Iterable[StageName],
        listener: Listener,
        kind: str = "job",
    ):
        self.spec, self.store, self.listen, self.kind = spec, store, listener, kind
        preflight.check(spec, store)
        self.sources = source_digests(spec)
        self.tracker = Tracker(store, self._warn, kind)
        self.recipes, self.champion = champion.with_champion(
            spec, self.sources, self.tracker, self._warn
        )
        # Forcing `train` also forces the controls.
        self.force = {name for name, recipe in self.recipes.items() if recipe.stage in set(force)}
        # By the name of a training: the same one that stopped earlier, from which it goes on.
        self.continued: dict[str, Artifact] = {}
        self.used: dict[str, Artifact] = {}
        self.tags: dict[str, str] = {}
        # Of MLflow, by the name of what is being made: trainings may be made side by side.
        self._open_runs: dict[str, str] = {}
        self._residents: dict[str, Resident | None] = {}
        self._lock = threading.Lock()

    def open(self, tags: dict[str, str]) -> None:
        """Opens the job's MLflow run, or reopens it when the Prefect flow run is a retry."""
        self.tags = tags
        self.tracker.open_job(self.spec.name, tags, resume_tag="prefect.flow_run_id")

    def cached(self, name: str, inputs: dict[str, Artifact]) -> Artifact | None:
        """Returns a stage's artifact if it is cached; `name` is the stage's or a control's."""
        recipe = self.recipes[name]
        asks_again = recipe.stage == "generate" and recipe.spec.generate.runtime.retry
        if name in self.force or (asks_again and name not in self.used):
            return None
        folder = self._folder(name)
        manifest = folder.manifest()
        if manifest is None or manifest["input_digests"] != _digests(inputs):
            return None
        # What failed for a passing reason in an earlier run is asked again.
        if manifest["facts"].get("num_unreached") and name not in self.used:
            return None
        if name == "release":
            for damage in InputFolder(folder.uri).damages():
                raise damage
            self._register(folder)
        self.tracker.cached(name, manifest.get("mlflow_run_id", ""))
        return self._use(name, folder.reference(manifest), "cached")

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Holds the exclusive right to make a stage's artifact within the block.

        Waits while another run has it; afterwards that run's artifact is cached, or its unfinished
        work is continued. This process is interrupted if it loses the right: when it could not
        renew its lease for too long, so that another run took over.
        """
        recipe = self.recipes[name]
        lease = self.store.lease(recipe.stage, recipe.name)
        with Holder(lease, on_lost=_thread.interrupt_main) as holder:
            waits = False
            while not holder.take("artifact"):
                if not waits:
                    self.note(name, "waiting: another run is making this artifact")
                waits = True
                time.sleep(LOOK_SECONDS)
            yield

    def make(self, name: str, inputs: dict[str, Artifact]) -> Artifact:
        """Runs a stage and commits its artifact; continues what a killed run left of it."""
        stage, spec = (recipe := self.recipes[name]).stage, recipe.spec
        assert set(inputs) == set(recipe.inputs), f"{name} reads {recipe.inputs}"
        folder = self._folder(name)
        self._make_room(name, folder, inputs)
        knobs = getattr(spec, stage).model_dump(mode="json")
        run_id = self.tracker.open_stage(name, self.tags, knobs) or ""
        self._open_runs[name] = run_id

        def emit(event: Event) -> None:
            if event["kind"] == "metrics" and run_id:
                self.tracker.metrics(run_id, event["values"], event["step"])
            self.listen(name, event)

        self.listen(name, {"kind": "started"})
        self._begin_imports(stage)
        self._log_lineage(run_id, stage, inputs)
        started, report = time.time(), Reporter(emit)
        try:
            with placed(name, spec, inputs) as seen:
                resident = self._resident(name)
                self._rest(beside=name)
                context = Stage(stage, seen, self.store, inputs, folder, report, self.log, resident)
                facts: JsonObject = function_of(stage)(context)
            seconds = time.time() - started
        finally:
            self._keep_log()
        artifact = folder.commit(
            {
                "stage": stage,
                "name": recipe.name,
                "ingredients": recipe.ingredients,
                "input_digests": _digests(inputs),
                "facts": facts,
                "seconds": seconds,
                "retort_version": machine.version_of("retort"),
                "mlflow_run_id": run_id,
            }
        )
        if stage == "release":
            self._register(folder)
        self.tracker.close_stage(run_id, facts, _small_files(folder))
        self.force.discard(name)
        return self._use(name, artifact, "done")

    def _begin_imports(self, stage: StageName) -> None:
        """Has what the students will be measured with imported while their rows are checked, which
        one core does, where there is memory for both."""
        is_wanted = stage == "curate" and self.kind == "job"
        if is_wanted and (machine.free_memory_bytes() or 0) > LIBRARIES_BYTES:
            processes.warm(measure_turns, measured_runtime(self.spec), self.log)

    def _rest(self, beside: str) -> None:
        """Has the engines of the rounds give back an accelerator's memory for another stage. That
        of the student takes new weights afterwards."""
        for kind, resident in self._residents.items():
            if resident and not beside.startswith(kind):
                resident.rest(keeps_weights=kind != "rollouts")

    def close(self) -> None:
        """Ends the processes that outlived their stages."""
        for resident in filter(None, self._residents.values()):
            resident.end()

    def fail_one(self, name: str, error: BaseException) -> None:
        """Ends the MLflow run of what was being made under a name, where the others go on."""
        if run_id := self._open_runs.pop(name, ""):
            self.tracker.fail(run_id, error)

    def fail(self, error: BaseException) -> None:
        """Ends the open MLflow runs honestly: failed, or killed when interrupted."""
        for run_id in (*self._open_runs.values(), self.tracker.parent_id):
            if run_id:
                self.tracker.fail(run_id, error)

    def _register(self, release: Folder) -> None:
        """Registers the released student unless that was done: MLflow may have been away."""
        facts = release.read_manifest()["facts"]
        is_registered = bool(facts.get("model_version"))
        if not is_registered and (version := self.tracker.register(self._candidate(facts))):
            release.amend({"model_version": version})

    def _candidate(self, facts: JsonObject) -> ReleasedStudent:
        """Returns the student that `release` made, in the form that the registry takes."""
        train = self.used["train"]
        return ReleasedStudent(
            name=facts["registered_model"],
            source=facts["source"],
            gate_passed=facts["gate_passed"],
            train=train.name,
            content=train.digest,
            champion=self.champion.version if self.champion else NONE,
            scores=facts["scores"],
            log_weights=self.spec.release.log_weights,
            exports=tuple(facts.get("exports", ())),
        )

    @property
    def log(self) -> Path:
        """The file with the output of vLLM, transformers and the like."""
        return self.store.log(self.spec.name)

    def _keep_log(self) -> None:
        """Copies the log into a store that is not on this machine; in a local one it is already."""
        if self.log.is_file() and not self.store.is_local:
            Folder(f"{self.store.uri}/logs").write(self.log.name, self.log.read_bytes())

    def note(self, name: str, text: str) -> None:
        """Passes a remark on a stage to the listener."""
        self.listen(name, {"kind": "note", "text": text})

    def _warn(self, text: str) -> None:
        self.note("mlflow", text)

    def _log_lineage(self, run_id: str, stage: StageName, inputs: dict[str, Artifact]) -> None:
        """Logs the stage's inputs in MLflow: artifacts, and for prepare the user's own files."""
        for name, artifact in inputs.items():
            self.tracker.dataset(run_id, name, artifact.uri, artifact.digest)
        for split in SPLITS if stage == "prepare" else ():
            source = getattr(self.spec.prepare, split)
            if source is not None:
                place = sources.describe(source)
                self.tracker.dataset(run_id, split, place, self.sources[f"prepare.{split}"])

    def _resident(self, name: str) -> Resident | None:
        """Returns the process whose engine makes the answers of all rounds, or their scores; None
        where a stage has an engine of its own."""
        kind = name.partition("-")[0]
        if kind not in RESIDENT or kind == name:
            return None
        with self._lock:
            if kind not in self._residents:
                self._residents[kind] = resident_of(self.recipes[name].spec, self.log)
            return self._residents[kind]

    def _folder(self, name: str) -> Folder:
        recipe = self.recipes[name]
        return self.store.artifact(recipe.stage, recipe.name)

    def _make_room(self, name: str, folder: Folder, inputs: dict[str, Artifact]) -> None:
        """Keeps the work of a killed run, unless the stage is forced or has other inputs now."""
        mine, continues = _digests(inputs), False
        marker = "scratch/inputs.json"
        try:
            continues = folder.has(marker) and folder.read_json(marker) == mine
        except DamagedError as error:
            self.note(name, f"warning: {error}; the stage begins anew")
        if name in self.force or folder.has(MANIFEST) or not continues:
            folder.clear()
            self._go_on(name, folder)
        folder.write_json(marker, mine)

    def _go_on(self, name: str, folder: Folder) -> None:
        """Puts what a shorter training kept where a killed run of this one would have left it."""
        if name in self.continued:
            shorter = InputFolder(self.continued[name].uri)
            for file in (each for each in shorter.files() if each.startswith(PAUSED)):
                folder.write(file.removeprefix(PAUSED), shorter.read(file))

    def _use(self, name: str, artifact: Artifact, how: str) -> Artifact:
        with self._lock:
            self.used[name] = artifact
            self._open_runs.pop(name, None)
            names = {key: used.name for key, used in self.used.items()}
            self.store.job(self.spec.name).write_json(names_file(self.kind), names)
        self.listen(name, {"kind": how})
        return artifact


def names_file(kind: str) -> str:
    """Returns the file of a job's folder with the names of the artifacts that a run last used."""
    return "artifacts.json" if kind == "job" else f"{kind}-artifacts.json"


def _digests(inputs: dict[str, Artifact]) -> dict[str, str]:
    return {name: artifact.digest for name, artifact in inputs.items()}


def _small_files(folder: Folder) -> dict[str, str]:
    """Returns the artifact's small texts, for MLflow; not what lies deeper or is large."""
    return {
        name: folder.read(name).decode()
        for name, size in folder.sizes().items()
        if "/" not in name
        and name.endswith(SMALL_FILES)
        and name != MANIFEST
        and not name.startswith(WORKINGS)
        and size < MAX_ARTIFACT_BYTES
    }


def function_of(stage: StageName) -> Callable[[Stage], JsonObject]:
    """Returns a stage's function, which has the name of its module."""
    module = importlib.import_module(f"retort.stages.{stage}")
    function: Callable[[Stage], JsonObject] = getattr(module, stage)
    return function
