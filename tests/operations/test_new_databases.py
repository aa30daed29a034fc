"""A new database is a copy of one that its library made before, and holds nothing of a job."""

import sqlite3
from contextlib import closing

import pytest

from flows import embedded
from retort.store import new_databases, open_store
from retort.tracking import make_database


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
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


def test_prefects_second_database_is_a_copy_of_its_first_and_a_used_one_stays(cache, tmp_path):
    def start(name: str, *, waits: bool = False):
        (tmp_path / name).mkdir(exist_ok=True)
        with embedded.server(tmp_path / name) as wait:
            if waits:
                wait()
        return tmp_path / name / "prefect/prefect.db"

    one = start("one", waits=True)
    (kept,) = cache.glob("new-prefect-*.db")
    tables = "select name, sql from sqlite_master order by name"
    assert rows(kept, tables) == rows(one, tables) != []
    for table in ("flow_run", "configuration", "variable", "block_document"):
        assert rows(kept, f"select count(*) from {table}") == [(0,)]
    with closing(sqlite3.connect(kept)) as database, database:
        database.execute("create table of_the_kept_one (number integer)")
    assert ("of_the_kept_one",) in rows(start("two"), "select name from sqlite_master")
    assert ("of_the_kept_one",) not in rows(start("one"), "select name from sqlite_master")


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
