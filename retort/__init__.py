"""Retort: prompts, a teacher and a student in; a smaller model and an honest report out.

Importing this package is light: nothing heavy (torch, vllm, mlflow, prefect) is touched.
"""

__version__ = "0.1.0"
