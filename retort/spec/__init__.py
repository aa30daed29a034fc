"""The job spec: knobs, loading, fingerprint. Importing it loads nothing heavy."""

from retort.spec.fingerprint import INPUTS, Recipe, differences, recipes
from retort.spec.job import STAGES, JobSpec, StageName
from retort.spec.load import build, load
from retort.spec.sections import EngineRuntime, Gate, Generate, Loss

__all__ = [
    "INPUTS",
    "STAGES",
    "EngineRuntime",
    "Gate",
    "Generate",
    "JobSpec",
    "Loss",
    "Recipe",
    "StageName",
    "build",
    "differences",
    "load",
    "recipes",
]
