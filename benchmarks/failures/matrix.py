"""The matrix: which fault hits which step of a job, and why some cells do not exist."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

STEPS = (
    "prepare",
    "generate",
    "commit",
    "upload",
    "curate",
    "train",
    "export",
    "evaluate",
    "report",
    "register",
)
FAULTS = {
    "sigkill": "SIGKILL of the group",
    "sigkill_child": "SIGKILL of a child",
    "sigterm": "SIGTERM",
    "disk_full": "full disk",
    "http_500": "endpoint 500",
    "http_garbage": "endpoint garbage",
    "http_429": "endpoint 429",
    "http_hang": "endpoint hangs",
    "engine_death": "engine death",
    "flipped_bit": "flipped bit",
    "cut_file": "cut file",
    "two_runs": "two runs at once",
    "mlflow_away": "MLflow away",
    "s3_403": "S3 403",
    "s3_errors": "S3 errors",
    "read_only": "read-only store",
    "prefect_away": "Prefect away",
    "clock_back": "clock back 2 h",
    "clock_ahead": "clock ahead 2 h",
    "out_of_memory": "out of memory",
    "s3_slow": "S3 slowness",
}
# How each fault is made; it lasts until the run has ended unless it says otherwise.
HOW = {
    "sigkill": "The command's process group is killed; its children notice that it is gone.",
    "sigkill_child": "The process of the stage's function is killed. A local engine that dies "
    "looks the same.",
    "sigterm": "The command gets SIGTERM.",
    "disk_full": "The store's disk, 300 MB of its own, is filled to the last block.",
    "http_500": "Every further request is answered with 500; each is tried twice.",
    "http_garbage": "Every further request is answered with a web page and status 200.",
    "http_429": "Six requests are refused with 429 and Retry-After.",
    "http_hang": "Four requests are not answered within the time limit of 3 s.",
    "engine_death": "The teacher's server breaks every connection.",
    "flipped_bit": "One bit in the middle of a file of the finished artifact is flipped, then the "
    "stage that reads it is run. Afterwards the stage of the file is run with `--force`. `retort "
    "verify` names each of these files, too.",
    "cut_file": "The same with the second half of the file cut off.",
    "two_runs": "The same command is started a second time beside the first, on the same store.",
    "mlflow_away": "MLflow breaks every connection. What was not registered is, by the next run.",
    "s3_403": "The bucket refuses every request that writes.",
    "s3_errors": "Every third request fails once: SlowDown, InternalError, a broken connection.",
    "read_only": "The store's disk is remounted read-only.",
    "prefect_away": "The Prefect server's connections end, and it takes no more.",
    "clock_back": "The wall clock of all processes steps back by two hours.",
    "clock_ahead": "The wall clock of all processes steps ahead by two hours.",
    "out_of_memory": "The stage's child may have 200 MB, too little to load its libraries.",
    "s3_slow": "Every request to the bucket takes 0.2 s longer.",
}
ENDPOINT = ("http_429", "http_500", "http_hang", "http_garbage")
S3 = ("s3_errors", "s3_slow", "s3_403")
# The stage that is under way at each step.
STAGE_OF = {step: step for step in STEPS} | {
    "commit": "generate",
    "upload": "generate",
    "register": "release",
    "export": "export-gguf-f16",
}
# Of a step, or of a step and a fault: why it cannot happen.
IN_PARENT = "It is made in the command's own process, which has no child meanwhile."
NO_REQUESTS = "It asks no endpoint."
NO_ENGINE = "No model is open meanwhile."
KERNEL = "The kernel ends the command's own process then: the cell SIGKILL of the group."
NOT_REACHABLE: dict[tuple[str, str], str] = {
    **{(step, "sigkill_child"): IN_PARENT for step in ("prepare", "commit", "report", "register")},
    ("upload", "sigkill_child"): "The child uploads its files itself: the cell of generate.",
    **{
        (step, fault): NO_REQUESTS
        for step in ("prepare", "commit", "upload", "export", "report", "register")
        for fault in ENDPOINT
    },
    **{
        (step, "engine_death"): NO_ENGINE
        for step in ("prepare", "commit", "upload", "export", "report", "register")
    },
    **{
        (step, "out_of_memory"): KERNEL
        for step in ("prepare", "commit", "upload", "report", "register")
    },
    ("register", "disk_full"): "The release is committed just before: a full disk ends that first.",
    ("register", "s3_errors"): "Registering writes to MLflow; the store's one file is a commit.",
    ("register", "s3_slow"): "Registering writes to MLflow; the store's one file is a commit.",
    ("upload", "disk_full"): "An upload fills no disk of this machine.",
    ("upload", "read_only"): "A bucket that may not be written answers 403: the cell S3 403.",
    ("register", "read_only"): "The release is committed just before: that ends first.",
}


# Cells that a test plays instead, because only a live teacher is asked in training.
TESTED = "tests/stages/test_live_endpoint.py"
ELSEWHERE: dict[tuple[str, str], str] = {
    ("train", fault): f"only a live teacher is asked in training, and {TESTED} plays that"
    for fault in (*ENDPOINT, "engine_death")
}


@dataclass(frozen=True)
class Cell:
    """A fault and the step that it hits."""

    step: str
    fault: str

    @property
    def name(self) -> str:
        """The cell's name, which is its key at the endpoint, too."""
        return f"{self.step}-{self.fault}"

    @property
    def stage(self) -> str:
        """The stage that is under way."""
        return STAGE_OF[self.step]

    @property
    def on_s3(self) -> bool:
        """Whether the store is a bucket."""
        return self.step == "upload" or self.fault in S3


def reason(step: str, fault: str) -> str:
    """Returns why a cell cannot happen, or nothing."""
    return NOT_REACHABLE.get((step, fault), "")


def _can_run(fault: str) -> bool:
    """Whether this machine can make a fault: only root makes disks, and a compiler the clock."""
    if fault in ("disk_full", "read_only"):
        return os.geteuid() == 0
    return not fault.startswith("clock_") or shutil.which("cc") is not None


def cells() -> Iterator[Cell]:
    """Yields the cells that are run, fault by fault, the faults that users meet most first."""
    for fault in FAULTS:
        for step in STEPS:
            if not reason(step, fault) and (step, fault) not in ELSEWHERE and _can_run(fault):
                yield Cell(step, fault)
