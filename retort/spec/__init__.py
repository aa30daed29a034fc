"""The job spec: knobs, loading, fingerprint. Importing it loads nothing heavy."""

from retort.spec.comparison import Evaluate, Gate, Price, Report
from retort.spec.data import Asked, Curate, HubDataset, Judge, Prepare, Source
from retort.spec.engine import EngineRuntime
from retort.spec.fingerprint import INPUTS, Recipe, differences, recipes
from retort.spec.job import CONTROLS, STAGES, JobSpec, StageName, training_of
from retort.spec.load import build, build_at, load
from retort.spec.sections import Generate, Lora, Loss, Train

__all__ = [
    "CONTROLS",
    "INPUTS",
    "STAGES",
    "Asked",
    "Curate",
    "EngineRuntime",
    "Evaluate",
    "Gate",
    "Generate",
    "HubDataset",
    "JobSpec",
    "Judge",
    "Lora",
    "Loss",
    "Prepare",
    "Price",
    "Recipe",
    "Report",
    "Source",
    "StageName",
    "Train",
    "build",
    "build_at",
    "differences",
    "load",
    "recipes",
    "training_of",
]
