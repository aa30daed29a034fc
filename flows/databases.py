"""Where the servers of `retort up` keep what they know: a file each, or one database of Postgres.

Prefect and MLflow both call a table alembic_version, so MLflow has a schema of its own there. The
surprise: an address holds the password, so servers get it by their environment, never as an
argument; TLS goes the same way, for the two drivers write its settings differently.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from retort.errors import SpecError

if TYPE_CHECKING:
    import psycopg

SCHEMA = "mlflow"
CONNECT_SECONDS = 15
FORM = "postgresql://USER@HOST:PORT/NAME"
PASSWORD = "the password comes from PGPASSWORD, ~/.pgpass or the address"
TLS = ("sslmode", "sslrootcert", "sslcert", "sslkey")
KNOWN = {"user", "password", "host", "port", "dbname", *TLS}
HELP = (
    f"{FORM}: Postgres for both servers instead of files in the store; {PASSWORD}, where lists of "
    "processes show it. The database is made if the user may do that, else it has to be there and "
    f"be the user's own: MLflow takes the schema `{SCHEMA}` in it, Prefect the default one and the "
    "extension pg_trgm"
)


@dataclass(frozen=True)
class Databases:
    """What each server's environment says of its database. Nothing else may have it."""

    prefect: dict[str, str] = field(repr=False)
    mlflow: dict[str, str] = field(repr=False)


def files(state: Path) -> Databases:
    """Returns SQLite files in a folder.

    Of Prefect's many connections to a file, one that has read may not write while another does
    ("database is locked"), whatever its patience. Where `:memory:` is part of the address, Prefect
    has one connection only, and requests take turns; to SQLite that part means nothing.
    """
    from sqlalchemy import URL

    # The place is read twice, by SQLAlchemy and by SQLite.
    place = f"file:{quote(str(state / 'prefect' / 'prefect.db'))}"
    settings = {"uri": "true", "check_same_thread": "false"}
    address = URL.create("sqlite+aiosqlite", database=place, query=settings).render_as_string()
    return Databases(
        {"PREFECT_API_DATABASE_CONNECTION_URL": f"{address}&turns=:memory:"},
        {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{state}/mlflow.db"},
    )


def postgres(url: str) -> Databases:
    """Returns the database of an address, made and prepared where that is missing.

    Raises `SpecError` where the address is none, no server answers, the server lets the user not
    in, or the user lacks a right.
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
    """Returns the parts of an address. What is wrong with it is said without quoting it."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    if not url.startswith(("postgresql://", "postgres://")):
        raise SpecError(f"--database: not an address of Postgres; allowed is {FORM}")
    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        parts = {"port": "none"}
    # What a password with a bare @ or / in it makes of the parts behind it.
    elsewhere = "@" in parts.get("host", "") + parts.get("dbname", "")
    if elsewhere or not parts.get("port", "5432").isdigit():
        raise SpecError(
            f"--database: not an address of Postgres; allowed is {FORM}, in which the signs "
            f": / @ ? # % of a password are written %3A %2F %40 %3F %23 %25; {PASSWORD}"
        )
    if not parts.get("dbname"):
        raise SpecError(f"--database names no database; allowed is {FORM}")
    if unknown := sorted(parts.keys() - KNOWN):
        raise SpecError(f"--database: {unknown[0]} cannot be set; allowed are {', '.join(TLS)}")
    return parts


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

    given: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, **parts}
    return psycopg.connect(**{**given, **more})


def _make_database(parts: dict[str, str], why: "psycopg.OperationalError") -> None:
    """Makes the database that could not be opened. `SpecError` where that was not the cause."""
    import psycopg
    from psycopg import errors, sql

    name = parts["dbname"]
    try:
        connection = _connect(parts, dbname="postgres", autocommit=True)
    except psycopg.OperationalError:
        raise _refusal(why) from None
    with connection:
        if _told(connection, "SELECT oid FROM pg_database WHERE datname = %s", name):
            raise _refusal(why)
        user = connection.info.user
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except errors.InsufficientPrivilege:
            raise SpecError(
                f"--database: there is no database {name}, and {user} may not make it; have an "
                f'administrator say: CREATE DATABASE "{name}" OWNER "{user}"'
            ) from None


def _refusal(error: "psycopg.OperationalError") -> SpecError:
    """Returns why there is no connection. What libpq says of it never holds the password."""
    said = " ".join(str(error).split())
    if error.pgconn and error.pgconn.needs_password:
        return SpecError(f"--database: the server asks for a password ({said}); {PASSWORD}")
    if error.pgconn and error.pgconn.used_password:
        return SpecError(
            f"--database: the server lets this user not in ({said}); mend the user's name or "
            f"password: {PASSWORD}"
        )
    return SpecError(
        f"--database: no connection ({said}); start Postgres, or mend the address: {FORM}"
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
            # IF NOT EXISTS asks for the right to make a schema also where there is one.
            if not _told(connection, "SELECT to_regnamespace(%s)", SCHEMA):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            if not _told(connection, rights):
                raise errors.InsufficientPrivilege
    except errors.InsufficientPrivilege:
        raise SpecError(
            f"--database: {user} may not make what it needs in database {name}; have an "
            f'administrator say: ALTER DATABASE "{name}" OWNER TO "{user}"'
        ) from None
    except psycopg.Error as error:
        raise SpecError(
            f"--database: database {name} cannot be prepared ({error.diag.message_primary}); it "
            "needs the extension pg_trgm, which is part of Postgres's contrib package"
        ) from None


def _told(connection: "psycopg.Connection[Any]", question: str, *values: str) -> Any:
    """Returns the one value that answers a question; None for no row."""
    row = connection.execute(question.encode(), values).fetchone()
    return row[0] if row else None


def _address(driver: str, info: Any, **query: str) -> str:
    """Returns the address of the database of a connection, for another driver."""
    login = quote(info.user, safe="")
    if info.password:
        login += f":{quote(info.password, safe='')}"
    host, port = info.host, f":{info.port}"
    if host.startswith("/"):
        query, host, port = {"host": host, "port": str(info.port), **query}, "", ""
    elif ":" in host:
        host = f"[{host}]"
    asked = f"?{urlencode(query)}" if query else ""
    return f"{driver}://{login}@{host}{port}/{quote(info.dbname, safe='')}{asked}"
