"""The address of MLflow, and a client of it. Importing mlflow takes seconds, so it comes last."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from retort.store import Store

SQLITE = "sqlite:///"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def tracking_uri(store: Store) -> str:
    """Returns MLFLOW_TRACKING_URI, or a SQLite database in the store's local state."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{store.local_state()}/mlflow.db"


def connect(uri: str) -> Any:
    """Returns a client of the MLflow at an address; makes a database that does not exist yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri, registry_uri=uri)


def exists(uri: str) -> bool:
    """Whether MLflow can have content: a database on this machine may not have been made yet."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()


def may_have_alias(uri: str, name: str, alias: str) -> bool:
    """Whether a registered model may have the alias; False only where that is certain.

    A database on this machine is read without mlflow, so that `retort why` answers at once.
    """
    if not exists(uri):
        return False
    if not uri.startswith(SQLITE):
        return True
    query = "select 1 from registered_model_aliases where name = ? and alias = ?"
    path = Path(uri.removeprefix(SQLITE)).resolve().as_uri()
    try:
        with closing(sqlite3.connect(f"{path}?mode=ro", uri=True)) as database:
            return database.execute(query, (name, alias)).fetchone() is not None
    except sqlite3.Error:  # mlflow's tables may have changed: then mlflow is asked
        return True
