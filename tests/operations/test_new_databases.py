"""A new database is a copy of one that its library made before, and holds nothing of a job."""

import sqlite3
from contextlib import closing

import pytest

from retort.store import new_databases, open_store
from retort.tracking import make_database


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "cache" / "retort"


def rows(path, query: str) -> list:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_mlflows_second_database_is_a_copy_of_its_first(cache, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        make_database(open_store(str(tmp_path / name / "store")))
        path = tmp_path / name / "store/mlflow.db"
        # The folder that MLflow itself gives to what belongs to no experiment.
        places = rows(path, "select artifact_location from experiments")
        assert places == [(f"{tmp_path}/{name}/mlruns/0",)]
        assert path.stat().st_mode & 0o777 == 0o600
        (kept,) = cache.glob("new-mlflow-*.db")
        # A mark in what is kept shows whether it is used.
        with closing(sqlite3.connect(kept)) as database, database:
            database.execute("update experiments set name = 'of the kept one'")
    names = "select name from experiments"
    assert rows(tmp_path / "one/store/mlflow.db", names) == [("Default",)]
    assert rows(tmp_path / "two/store/mlflow.db", names) == [("of the kept one",)]


def test_a_copy_is_whole_or_not_there(cache, tmp_path, monkeypatch):
    with closing(sqlite3.connect(tmp_path / "made.db")) as database, database:
        database.execute("create table things (number integer)")
    new_databases.keep_new("mlflow", tmp_path / "made.db")

    def full(source, copy) -> None:
        copy.write(source.read(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="No space left"):
        new_databases.copy_new("mlflow", tmp_path / "new/mlflow.db")
    assert not list((tmp_path / "new").iterdir())
