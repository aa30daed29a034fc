"""Models from Python: which are registered, and how any of them answers a file of questions.

All of it happens on this machine; no server is needed. Note: a model that a job made is asked as
that job asks (task type, prompts, lengths, engine), so that its scores can be compared.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retort.client.models.results import Evaluation, ModelVersion, Score, TestData
from retort.errors import SpecError
from retort.store import open_store

__all__ = ["Evaluation", "ModelVersion", "Models", "Score", "TestData"]


class Models:
    """The models of a store, and any others that this machine can open.

    `until_over` waits for the jobs of some names, and returns what went wrong with one.
    """

    def __init__(self, store: str, until_over: Callable[[Sequence[str]], str] = lambda _: ""):
        self._store = open_store(store)
        self._until_over = until_over

    def evaluate(
        self,
        model_name: str,
        test_data: TestData,
        metrics: Sequence[str] | None = None,
        task_type: str | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Asks a model every row of `test_data`, greedily, and returns its scores.

        It runs here, in a process of its own, and needs no server. `model_name` is a registered
        name (its champion, else its challenger, else its newest version), NAME@alias or
        NAME/VERSION; NAME-baseline, the base of the student of that name; a model's folder, or a
        hub id. A job of its name that is under way is waited for. `test_data` is a path, URL, list
        or dataset as in a job's `prepare.test`.

        `metrics` are names of `retort.metrics`, yours as package.module:name, "bleu_score" (bleu)
        and "inference_time"; the task type's own if not given. A conversation has no right answer:
        its "accuracy" is agreement with the row's own reply. `task_type` is that of the job that
        made the model; of another model it must be given. `knobs` changes any knob of the spec
        that the model is asked by, such as {"evaluate.engine": "transformers"}.

        Raises `SpecError` for an unknown model, metric, task type or knob, `DataError` for rows
        that cannot be used, `StoreError` where MLflow or the store fails, and `StageError` where
        the model does.
        """
        from retort.client.models.measuring import EvaluationRequest, measured
        from retort.jobs.finding import JOB, find, makers

        asked = EvaluationRequest(test_data, metrics, task_type, dict(knobs or {}))
        wrong = self._until_over([name for name in makers(model_name) if JOB.fullmatch(name)])
        try:
            found = find(self._store, model_name)
        except SpecError as error:
            raise SpecError(f"{wrong}; {error}" if wrong else str(error)) from None
        if wrong:
            logging.getLogger("retort").warning(f"{wrong}; {found.label} was made before")
        return measured(self._store, found, asked)

    def list(self) -> "list[ModelVersion]":
        """Returns every version of every registered model, by name, the newest first.

        Raises `StoreError` where MLflow does not answer.
        """
        from retort.jobs.finding import main_score, registered

        found = []
        for version, aliases in registered(self._store):
            metric, score = main_score(self._store, version)
            told = version.name, version.version, aliases, version.gate, version.source
            found.append(ModelVersion(*told, metric, score))
        return found
