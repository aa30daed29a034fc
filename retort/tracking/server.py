"""Where MLflow is, and the way to it. Loading mlflow takes seconds, so it is loaded last of all."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from retort.store import Store

SQLITE = "sqlite:///"
SURROUNDINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def tracking_uri(store: Store) -> str:
    """Returns MLFLOW_TRACKING_URI, or a SQLite database in the store's local state."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{store.local_state()}/mlflow.db"


def without_secrets(uri: str) -> str:
    """Returns a URI without the user and password it may carry: fit for reports and messages."""
    parts = urlsplit(uri)
    return (
        urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri
    )


def connect(uri: str) -> Any:
    """Returns a client of the MLflow at an address; a database that is not there yet is made."""
    for name, value in SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri, registry_uri=uri)


def is_there(uri: str) -> bool:
    """Whether there is anything to ask: a database on this machine may not have been made yet."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()


def may_have_alias(uri: str, name: str, alias: str) -> bool:
    """Whether a registered model may have the alias: False only where that is certain.

    A database on this machine is read without mlflow, for `retort why` should answer at once.
    """
    if not is_there(uri):
        return False
    if not uri.startswith(SQLITE):
        return True
    query = "select 1 from registered_model_aliases where name = ? and alias = ?"
    place = Path(uri.removeprefix(SQLITE)).resolve().as_uri()
    try:
        with closing(sqlite3.connect(f"{place}?mode=ro", uri=True)) as database:
            return database.execute(query, (name, alias)).fetchone() is not None
    except sqlite3.Error:  # the table is mlflow's own: if it is another now, mlflow is asked
        return True
