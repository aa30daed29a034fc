"""Who is champion: `retort promote` makes the challenger it, `retort rollback` the one before.

Each is done once however often it is asked for. What was said before an alias moved is said again
by the same command; the alias moves last, so there is never a champion of unknown descent.
"""

from dataclasses import dataclass
from typing import Any

from retort.errors import SpecError, StoreError, did_you_mean
from retort.store import Store
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
from retort.tracking.server import connect, is_there, tracking_uri, without_secrets

ROLLED_BACK = "retort.rolled_back"  # of the registered model: "2 to 1"


@dataclass(frozen=True)
class Outcome:
    """What became of a promotion or a rollback: whether it may stand, and a sentence."""

    done: bool
    text: str


def open_registry(store: Store) -> Any:
    """Returns a client of the store's MLflow. Raises `SpecError` where nothing was registered yet,
    and `StoreError` where it does not answer."""
    uri = tracking_uri(store)
    place = without_secrets(uri)
    if not is_there(uri):
        raise SpecError(f"no model is registered at {place}; run a job first, or name its --store")
    try:
        client = connect(uri)
        client.search_registered_models(max_results=1)
    except Exception as error:  # whatever the server or the network raises
        cause = f"{type(error).__name__}: {error}".splitlines()[0].replace(uri, place)
        raise StoreError(f"MLflow at {place}: {cause}") from None
    return client


def promote(client: Any, name: str) -> Outcome:
    """Makes the challenger the champion, unless its gate refused it or compared it with another
    champion than the present one. Raises `SpecError` for a name that no model has."""
    _model(client, name)
    champion, challenger = (by_alias(client, name, alias) for alias in (CHAMPION, CHALLENGER))
    if challenger is None:
        return Outcome(False, f"{name}: no version has passed its gate, so none can be champion")
    who = f"{name} version {challenger.version}"
    if champion and champion.version == challenger.version:
        return Outcome(True, f"{who} is the champion already")
    if challenger.gate != "passed":
        return Outcome(False, f"{who} was refused by its gate; it cannot be champion")
    if refusal := _compared_with_another(challenger, champion):
        return Outcome(False, f"{who} {refusal}; run its job again, then promote")
    former = champion.version if champion else NONE
    client.set_model_version_tag(name, challenger.version, FORMER, former)
    client.set_registered_model_alias(name, CHAMPION, challenger.version)
    after = f", after version {former}" if champion else ""
    return Outcome(True, f"{who} is the champion now{after}")


def _compared_with_another(challenger: Version, champion: Version | None) -> str:
    """Returns with whom a version was compared where that is not the present champion.

    The same student released anew needs no comparison with itself.
    """
    present = champion.version if champion else NONE
    same = champion is not None and champion.train == challenger.train
    if challenger.compared_with == present or same:
        return ""
    was = challenger.compared_with
    with_whom = "no champion" if was == NONE else f"version {was}"
    now = f"version {present} is the champion" if champion else "there is no champion"
    return f"was compared with {with_whom}, but now {now}"


def rollback(client: Any, name: str) -> Outcome:
    """Makes the former champion the champion again, one step back however often it is asked for.

    Raises `SpecError` for a name that no model has, and where there is no former champion.
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
    """Returns the registered model. Raises `SpecError` that lists the names there are."""
    if model := find_model(client, name):
        return model
    names = sorted(model.name for model in client.search_registered_models())
    there = ", ".join(names) or "none"
    raise SpecError(f"no registered model '{name}'{did_you_mean(name, names)}; there: {there}")
