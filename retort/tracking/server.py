"""The address of MLflow, a client of it, and the database of the embedded one.

Importing mlflow takes seconds, so that is done last.
"""

import contextlib
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from retort.processes.disk import for_owner, make_folder
from retort.store import Store, new_databases

try:
    import fcntl
except ImportError:  # no POSIX: there two first runs at once may both make the database
    fcntl = None  # type: ignore[assignment]

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


def connect(uri: str, warn: Callable[[str], None] = lambda text: None) -> Any:
    """Returns a client of the MLflow at an address; makes a database that does not exist yet."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs the traceback of an error that it raises, too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith(SQLITE):
        _make_database(Path(uri.removeprefix(SQLITE)), warn)
    return MlflowClient(uri, registry_uri=uri)


def make_database(store: Store) -> None:
    """Makes the database of the embedded MLflow of a store, where it will be used and is not yet
    there."""
    if (uri := tracking_uri(store)).startswith(SQLITE):
        connect(uri)


def _make_database(path: Path, warn: Callable[[str], None]) -> None:
    """Makes MLflow's database unless there is one. Of several processes one makes it, under another
    name until it is whole, and the others wait."""
    if _is_made(path):
        return
    from mlflow import MlflowClient

    with _lock(make_folder(path.parent) / f"{path.name}.lock", warn):
        if _is_made(path):
            return
        for left in path.parent.glob(f"{path.name}.*.part"):  # by a process that was killed
            left.unlink()
        part = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
        os.close(for_owner(str(part), os.O_CREAT | os.O_RDWR))
        try:
            if new_databases.copy_new("mlflow", part):
                _move_default_experiment(part)
            else:
                client = MlflowClient(f"{SQLITE}{part}", registry_uri=f"{SQLITE}{part}")
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
                new_databases.keep_new("mlflow", part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _move_default_experiment(path: Path) -> None:
    """Has the files of MLflow's experiment 0 lie where they would if it were made here: a job has
    an experiment of its own, but the user may use the database for other things."""
    query = "update experiments set artifact_location = ? where experiment_id = 0"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(query, (f"{Path.cwd()}/mlruns/0",))


def _is_made(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


@contextlib.contextmanager
def _lock(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a file of this machine, which ends with the process."""
    with open(path, "w", opener=for_owner) as stream:
        if fcntl:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                warn(f"another run makes MLflow's database, {path.with_suffix('')}; waiting for it")
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


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
