"""The job spec: knobs, loading, fingerprint. Importing it loads nothing heavy."""

from retort.spec.data import Asked, Curate, HubDataset, Judge, Prepare, Source
from retort.spec.engine import EngineRuntime
from retort.spec.fingerprint import INPUTS, Recipe, differences, recipes
from retort.spec.job import STAGES, JobSpec, StageName
from retort.spec.load import build, load
from retort.spec.sections import Gate, Generate, Lora, Loss, Train

__all__ = [
    "INPUTS",
    "STAGES",
    "Asked",
    "Curate",
    "EngineRuntime",
    "Gate",
    "Generate",
    "HubDataset",
    "JobSpec",
    "Judge",
    "Lora",
    "Loss",
    "Prepare",
    "Recipe",
    "Source",
    "StageName",
    "Train",
    "build",
    "differences",
    "load",
    "recipes",
]
