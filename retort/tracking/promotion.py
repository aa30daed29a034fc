"""The champion of a model: `retort promote` makes it the challenger, `retort rollback` the former.

Either command may be repeated without a further effect. The alias moves last, after the tags that
say which champion came before, so an interrupted command is completed by running it again.
"""

from dataclasses import dataclass
from typing import Any

from retort.errors import SpecError, StoreError, did_you_mean
from retort.store import Store
from retort.store.urls import public
from retort.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    FORMER,
    NONE,
    Version,
    by_alias,
    by_number,
    find_model,
)
from retort.tracking.server import connect, exists, tracking_uri

ROLLED_BACK = "retort.rolled_back"  # of the registered model: "2 to 1"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a promotion or a rollback: whether it was done, and a sentence about it."""

    done: bool
    text: str


def mlflow_error(uri: str, error: Exception) -> StoreError:
    """Returns the error for an MLflow that failed, with its address and the first line of why."""
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    return StoreError(public(f"MLflow at {uri}: {cause}"))


def open_registry(store: Store) -> Any:
    """Returns a client of the store's MLflow. Raises `SpecError` where nothing was registered yet,
    and `StoreError` where it does not answer."""
    uri = tracking_uri(store)
    if not exists(uri):
        place = public(uri)
        raise SpecError(f"no model is registered at {place}; run a job first, or name its --store")
    try:
        client = connect(uri)
        client.search_registered_models(max_results=1)
    except Exception as error:  # whatever the server or the network raises
        raise mlflow_error(uri, error) from None
    return client


def promote(client: Any, name: str) -> Outcome:
    """Makes the challenger the champion, unless its gate refused it or it was compared with another
    champion than the present one. Raises `SpecError` for an unknown model."""
    _model(client, name)
    champion, challenger = (by_alias(client, name, alias) for alias in (CHAMPION, CHALLENGER))
    if challenger is None:
        return Outcome(False, f"{name}: no version has passed its gate, so none can be champion")
    version = f"{name} version {challenger.version}"
    if champion and champion.version == challenger.version:
        return Outcome(True, f"{version} is the champion already")
    if challenger.gate != "passed":
        return Outcome(False, f"{version} was refused by its gate; it cannot be champion")
    if refusal := _compared_with_another(challenger, champion):
        return Outcome(False, f"{version} {refusal}; run its job again, then promote")
    former = champion.version if champion else NONE
    client.set_model_version_tag(name, challenger.version, FORMER, former)
    client.set_registered_model_alias(name, CHAMPION, challenger.version)
    after = f", after version {former}" if champion else ""
    return Outcome(True, f"{version} is the champion now{after}")


def _compared_with_another(challenger: Version, champion: Version | None) -> str:
    """Returns which champion a version was compared with, where that is not the present one.

    The champion's own student, released again, needs no comparison with itself.
    """
    present = champion.version if champion else NONE
    same = champion is not None and champion.train == challenger.train
    if challenger.compared_with == present or same:
        return ""
    other = "no champion" if challenger.compared_with == NONE else ""
    now = f"version {present} is the champion" if champion else "there is no champion"
    return f"was compared with {other or f'version {challenger.compared_with}'}, but now {now}"


def rollback(client: Any, name: str) -> Outcome:
    """Makes the former champion the champion again; repeated, it goes no further back.

    Raises `SpecError` for an unknown model, and where there is no former champion.
    """
    model = _model(client, name)
    champion = by_alias(client, name, CHAMPION)
    if champion is None:
        raise SpecError(f"{name} has no champion; `retort promote {name}` makes one")
    last, _, back_to = model.tags.get(ROLLED_BACK, "").partition(" to ")
    if champion.version == back_to:
        text = f"{name} was rolled back from version {last} to {back_to} already; no further step"
        return Outcome(True, text)
    former = by_number(client, name, champion.former)
    if former is None:
        gone = "" if champion.former == NONE else f" ({champion.former} was deleted)"
        raise SpecError(f"{name} version {champion.version} has no champion before it{gone}")
    client.set_registered_model_tag(name, ROLLED_BACK, f"{champion.version} to {former.version}")
    client.set_registered_model_alias(name, CHAMPION, former.version)
    text = f"{name} version {former.version} is the champion again, after {champion.version}"
    return Outcome(True, text)


def _model(client: Any, name: str) -> Any:
    """Returns the registered model. Raises `SpecError` that lists the registered names."""
    if model := find_model(client, name):
        return model
    names = sorted(model.name for model in client.search_registered_models())
    listed = ", ".join(names) or "none"
    hint = did_you_mean(name, names)
    raise SpecError(f"no registered model '{name}'{hint}; registered: {listed}")
