"""The databases of the servers of `retort up`: a file each, or one database of Postgres.

Prefect and MLflow both call a table alembic_version, so MLflow has a schema of its own there. An
address holds the password, so servers get it by their environment, never as an argument. TLS
settings go the same way, because the two drivers write them differently.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from retort.errors import SpecError, StoreError
from retort.processes.disk import make_folder

if TYPE_CHECKING:
    import psycopg

SCHEMA = "mlflow"
CONNECT_SECONDS = 15
FORM = "postgresql://USER@HOST:PORT/NAME"
PASSWORD = "the password comes from PGPASSWORD, ~/.pgpass or the address"
TLS = ("sslmode", "sslrootcert", "sslcert", "sslkey")


@dataclass(frozen=True)
class Databases:
    """What leads each server to its database, for the environment of that server alone."""

    prefect: dict[str, str] = field(repr=False)
    mlflow: dict[str, str] = field(repr=False)


def files(state: Path) -> Databases:
    """Returns SQLite files in a folder, which is made, and which other users cannot read.

    Note: Prefect opens many connections to a file, and one that has read may not write while
    another does ("database is locked"), however long it waits. Where `:memory:` is part of the
    address, Prefect opens one connection, and requests take turns; SQLite ignores that part.
    Raises `StoreError` where the folder cannot be made.
    """
    try:
        make_folder(state / "prefect")
        (state / "prefect").chmod(0o700)
        for path in state.glob("mlflow.db*"):
            path.chmod(0o600)
    except OSError as error:
        raise StoreError(
            f"the databases of Prefect and MLflow cannot be kept in {state} ({error.strerror}); "
            "with a store on S3 this is below the working directory: start the command in a "
            "folder that you may write to, or give another --store"
        ) from error
    # The path is parsed twice, by SQLAlchemy and by SQLite.
    place = f"file:{quote(str(state / 'prefect' / 'prefect.db'))}"
    settings = {"uri": "true", "check_same_thread": "false"}
    address = URL.create("sqlite+aiosqlite", database=place, query=settings).render_as_string()
    return Databases(
        {"PREFECT_API_DATABASE_CONNECTION_URL": f"{address}&turns=:memory:"},
        {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{state}/mlflow.db"},
    )


def postgres(url: str) -> Databases:
    """Returns the database of an address; makes and prepares it where it is missing.

    Raises `SpecError` where the address is malformed, no server answers, the server refuses the
    user, or the user lacks a right.
    """
    parts = _parts(url)
    with _connected(parts) as connection:
        _make_room(connection)
        info = connection.info
        tls = {f"PG{name.upper()}": parts[name] for name in TLS if name in parts}
        prefect = _address("postgresql+asyncpg", info)
        mlflow = _address("postgresql+psycopg", info, options=f"-csearch_path={SCHEMA}")
    return Databases(
        {**tls, "PREFECT_API_DATABASE_CONNECTION_URL": prefect},
        {**tls, "MLFLOW_BACKEND_STORE_URI": mlflow},
    )


def _parts(url: str) -> dict[str, str]:
    """Returns the parts of an address. Errors never quote it: it may hold a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise SpecError(f"--database: not an address of Postgres; allowed is {FORM}")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        parsed = URL.create("postgresql", host="@")
    # This is what a bare @ or / in a password makes of the parts behind it.
    if "@" in (parsed.host or "") + (parsed.database or ""):
        raise SpecError(
            f"--database: not an address of Postgres; allowed is {FORM}, in which the signs "
            f": / @ ? # % of a password are written %3A %2F %40 %3F %23 %25; {PASSWORD}"
        )
    if not parsed.database:
        raise SpecError(f"--database names no database; allowed is {FORM}")
    if unknown := sorted(parsed.query.keys() - set(TLS)):
        raise SpecError(f"--database: {unknown[0]} cannot be set; allowed are {', '.join(TLS)}")
    parts = {
        "user": parsed.username,
        "password": parsed.password,
        "host": parsed.host,
        "port": parsed.port,
        "dbname": parsed.database,
        **parsed.query,
    }
    return {name: str(value) for name, value in parts.items() if value is not None}


@contextmanager
def _connected(parts: dict[str, str]) -> "Iterator[psycopg.Connection[Any]]":
    """Gives a connection to a database, which is made if it is not there."""
    import psycopg

    try:
        connection = _connect(parts)
    except psycopg.OperationalError as error:
        _make_database(parts, error)
        connection = _connect(parts)
    with connection:
        yield connection


def _connect(parts: dict[str, str], **more: Any) -> "psycopg.Connection[Any]":
    import psycopg

    settings: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, **parts, **more}
    return psycopg.connect(**settings)


def _make_database(parts: dict[str, str], why: "psycopg.OperationalError") -> None:
    """Makes the database that could not be opened. `SpecError` for any other cause."""
    import psycopg
    from psycopg import errors, sql

    name = parts["dbname"]
    try:
        connection = _connect(parts, dbname="postgres", autocommit=True)
    except psycopg.OperationalError:
        raise _refusal(why) from None
    with connection:
        if _value(connection, "SELECT oid FROM pg_database WHERE datname = %s", name):
            raise _refusal(why)
        user = connection.info.user
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except errors.InsufficientPrivilege:
            raise SpecError(
                f"--database: there is no database {name}, and {user} may not make it; have an "
                f'administrator run: CREATE DATABASE "{name}" OWNER "{user}"'
            ) from None


def _refusal(error: "psycopg.OperationalError") -> SpecError:
    """Returns why there is no connection. The message of libpq never holds the password."""
    message = " ".join(str(error).split())
    if error.pgconn and error.pgconn.needs_password:
        return SpecError(f"--database: the server asks for a password ({message}); {PASSWORD}")
    if error.pgconn and error.pgconn.used_password:
        return SpecError(
            f"--database: the server refused this user ({message}); correct the user's name or "
            f"password: {PASSWORD}"
        )
    return SpecError(
        f"--database: no connection ({message}); start Postgres, or correct the address: {FORM}"
    )


def _make_room(connection: "psycopg.Connection[Any]") -> None:
    """Makes MLflow's schema and the extension that Prefect needs. `SpecError` without the right."""
    import psycopg
    from psycopg import errors, sql

    user, name = connection.info.user, connection.info.dbname
    schema = sql.Identifier(SCHEMA)
    rights = "SELECT has_schema_privilege(coalesce(current_schema, 'public'), 'CREATE')"
    try:
        with connection.transaction():
            # IF NOT EXISTS needs the right to make a schema even where there is one.
            if not _value(connection, "SELECT to_regnamespace(%s)", SCHEMA):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            if not _value(connection, rights):
                raise errors.InsufficientPrivilege
    except errors.InsufficientPrivilege:
        raise SpecError(
            f"--database: {user} may not make what it needs in database {name}; have an "
            f'administrator run: ALTER DATABASE "{name}" OWNER TO "{user}"'
        ) from None
    except psycopg.Error as error:
        raise SpecError(
            f"--database: database {name} cannot be prepared ({error.diag.message_primary}); it "
            "needs the extension pg_trgm, which is part of Postgres's contrib package"
        ) from None


def _value(connection: "psycopg.Connection[Any]", query: str, *values: str) -> Any:
    """Returns the one value that answers a question; None for no row."""
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


def _address(driver: str, info: "psycopg.ConnectionInfo", **query: str) -> str:
    """Returns the address of the database of a connection, for another driver."""
    is_socket = info.host.startswith("/")
    return URL.create(
        driver,
        username=info.user,
        password=info.password or None,
        host=None if is_socket else info.host,
        port=None if is_socket else info.port,
        database=info.dbname,
        query={"host": info.host, "port": str(info.port), **query} if is_socket else query,
    ).render_as_string(hide_password=False)
