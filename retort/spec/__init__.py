"""The job spec: knobs, loading, fingerprint. Importing it loads nothing heavy."""

from retort.spec.curate import ConsultedModel, Curate, Judge
from retort.spec.engine import EngineRuntime
from retort.spec.evaluate import Evaluate
from retort.spec.expand import Expand
from retort.spec.export import Export
from retort.spec.fingerprint import INPUTS, TRIAL, Recipe, differences, of_trial, recipes
from retort.spec.generate import Generate
from retort.spec.job import (
    CONTROLS,
    DERIVED,
    RANDOM_START,
    ROUND_CONTROLS,
    STAGES,
    WITHOUT,
    WITHOUT_LOSS,
    JobSpec,
    StageName,
    capture_of,
    evaluation_of,
    export_of,
    training_of,
)
from retort.spec.load import build, build_at, load
from retort.spec.prepare import HubDataset, Prepare, Source, Traffic
from retort.spec.report import Gate, Price, Report
from retort.spec.student import FromTeacher, Student, Width
from retort.spec.teachers import OneTeacher, Route
from retort.spec.train import Lora, Loss, Train

__all__ = [
    "CONTROLS",
    "DERIVED",
    "INPUTS",
    "RANDOM_START",
    "ROUND_CONTROLS",
    "STAGES",
    "TRIAL",
    "WITHOUT",
    "WITHOUT_LOSS",
    "ConsultedModel",
    "Curate",
    "EngineRuntime",
    "Evaluate",
    "Expand",
    "Export",
    "FromTeacher",
    "Gate",
    "Generate",
    "HubDataset",
    "JobSpec",
    "Judge",
    "Lora",
    "Loss",
    "OneTeacher",
    "Prepare",
    "Price",
    "Recipe",
    "Report",
    "Route",
    "Source",
    "StageName",
    "Student",
    "Traffic",
    "Train",
    "Width",
    "build",
    "build_at",
    "capture_of",
    "differences",
    "evaluation_of",
    "export_of",
    "load",
    "of_trial",
    "recipes",
    "training_of",
]
