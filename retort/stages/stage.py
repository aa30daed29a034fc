"""What every stage function is given: the spec, its inputs, its own folder, and who listens."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.data import token_bytes
from retort.data.token_bytes import TokenBytes
from retort.events import Reporter
from retort.processes.resident import Address, Resident
from retort.records import Decision, Example, JsonObject, Response, Split, read_lines
from retort.spec import DERIVED, JobSpec, StageName
from retort.spec.fingerprint import examples_of
from retort.store import Artifact, Folder, InputFolder, Store, model_folder, signals
from retort.store.signals import Signal

# The file of a generate artifact with the bytes of its signals' tokens.
TOKENS = "tokens.json"


@dataclass(frozen=True)
class Stage:
    """One stage about to run. Its function writes files to `out` and returns its facts.

    `resident` is a process whose engine answers instead of one that would be opened for the stage;
    in a child it is that process's address.
    """

    name: StageName
    spec: JobSpec
    store: Store
    inputs: dict[str, Artifact]
    out: Folder
    report: Reporter
    log: Path
    resident: Resident | Address | None = None

    def input(self, name: str) -> InputFolder:
        """The folder of an input artifact, of a stage or a control: reading it checks digests.

        `prepare` is the artifact with the examples, which `expand` made if it is an input.
        """
        name = examples_of(self.inputs) if name == "prepare" else name
        return InputFolder(self.inputs[name].uri)

    def facts(self, name: str) -> JsonObject:
        """The facts in an input's manifest."""
        facts: JsonObject = self.input(name).read_manifest()["facts"]
        return facts

    def arguments(self) -> JsonObject:
        """The stage as JSON, for a child process; `from_arguments` is its inverse.

        A resident process is started where it is not there: make them anew for each child.
        """
        return {
            "name": self.name,
            "spec": self.spec.model_dump(mode="json"),
            "store": self.store.uri,
            "inputs": {key: vars(value) for key, value in self.inputs.items()},
            "out": self.out.uri,
            "log": str(self.log),
            "resident": self.resident and self.resident.address(),
        }


def from_arguments(arguments: JsonObject, report: Reporter) -> Stage:
    """Returns the stage that `Stage.arguments` described, in the child process."""
    return Stage(
        name=arguments["name"],
        spec=JobSpec.model_validate(arguments["spec"], context=DERIVED),
        store=Store(arguments["store"]),
        inputs={key: Artifact(**value) for key, value in arguments["inputs"].items()},
        out=Folder(arguments["out"]),
        report=report,
        log=Path(arguments["log"]),
        resident=Address(**arguments["resident"]) if arguments.get("resident") else None,
    )


def spent_on_prompts(stage: Stage) -> dict[str, float]:
    """Returns what the teacher has cost as the writer of prompts, and in checking these."""
    facts = stage.input("prepare").read_manifest().get("facts", {})
    spending: dict[str, float] = facts.get("expanded", {}).get("spending", {}).get("generate", {})
    return spending


def read_examples(prepared: Folder, *splits: Split) -> list[Example]:
    """Returns the examples of the given splits, in their order in the user's files."""
    return list(stream_examples(prepared, *splits))


def stream_examples(prepared: Folder, *splits: Split) -> Iterator[Example]:
    """Yields what `read_examples` returns, holding one file at a time."""
    names = prepared.files()
    for split in splits:
        for name in names:
            if name.startswith(f"{split}-"):
                yield from read_lines(Example, prepared.read(name))


def held_out_split(spec: JobSpec) -> Split:
    """Returns the split that the models are compared on: test, or validation without one."""
    return "test" if spec.prepare.has("test") else "validation"


def read_responses(generated: Folder) -> list[Response]:
    """Returns all responses in the order of the examples."""
    return [
        response
        for name in generated.files()
        if name.startswith("responses-")
        for response in read_lines(Response, generated.read(name))
    ]


def read_signals(generated: Folder) -> dict[str, Signal]:
    """Returns all stored signals by response id."""
    found: dict[str, Signal] = {}
    for name in generated.files():
        if name.startswith("signals-"):
            found.update(signals.unpack(generated.read(name)))
    return found


def read_token_bytes(generated: Folder, spec: JobSpec) -> TokenBytes:
    """Returns the bytes of the tokens of the stored signals.

    Artifacts of version 0.1 lack them; then they are those of the teacher's folder.
    """
    if generated.has(TOKENS):
        return TokenBytes.from_json(generated.read(TOKENS))
    return token_bytes.load(model_folder.locate(spec.generate.teacher, "generate.teacher"))


def read_decisions(curated: Folder) -> dict[str, Decision]:
    """Returns curation's decisions by response id."""
    # Until version 0.1 a decision's `target_text` was stored under its former name.
    data = curated.read("decisions.jsonl").replace(b'"lesson":', b'"target_text":')
    return {decision.id: decision for decision in read_lines(Decision, data)}
