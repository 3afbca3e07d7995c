"""The recorded traffic: one table of answers, one of feedback, in SQLite (WAL) or any database SQLAlchemy reaches.

    records = Records.open("traffic.sqlite")
    records.add_request(row); records.add_feedback(request_id, "thumbs", "up")

Every answer carries the versions of the weights and of the harness that made it and the exact token ids and log-probs,
so near-online training can tell on-policy rows from old ones. Users are stored as salted hashes only. Not covered:
turning rows into training data (see `serve.export` and `corpus`).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import orm

from loopline.base.errors import UserError


class Base(orm.DeclarativeBase):
    """Declarative base."""


class Request(Base):
    """One answer (each of a request's `n` answers has its own row)."""

    __tablename__ = "requests"
    id: orm.Mapped[str] = orm.mapped_column(sql.String(80), primary_key=True)
    ts: orm.Mapped[float] = orm.mapped_column(sql.Float, index=True)
    conversation: orm.Mapped[str] = orm.mapped_column(sql.String(200), index=True)
    model: orm.Mapped[str] = orm.mapped_column(sql.String(200))
    weights_version: orm.Mapped[str] = orm.mapped_column(sql.String(80))
    harness_version: orm.Mapped[str] = orm.mapped_column(sql.String(80))
    params: orm.Mapped[dict[str, Any]] = orm.mapped_column(sql.JSON)
    input_messages: orm.Mapped[list[Any]] = orm.mapped_column(sql.JSON)
    output_message: orm.Mapped[dict[str, Any]] = orm.mapped_column(sql.JSON)
    prompt_token_ids: orm.Mapped[list[int]] = orm.mapped_column(sql.JSON)
    token_ids: orm.Mapped[list[int]] = orm.mapped_column(sql.JSON)
    logprobs: orm.Mapped[list[float]] = orm.mapped_column(sql.JSON)
    finish: orm.Mapped[str] = orm.mapped_column(sql.String(20))
    usage: orm.Mapped[dict[str, int]] = orm.mapped_column(sql.JSON)
    latency_ms: orm.Mapped[float] = orm.mapped_column(sql.Float)
    user_hash: orm.Mapped[str | None] = orm.mapped_column(sql.String(64))
    consent: orm.Mapped[bool] = orm.mapped_column(sql.Boolean)


class Feedback(Base):
    """One piece of feedback on an answer."""

    __tablename__ = "feedback"
    id: orm.Mapped[int] = orm.mapped_column(sql.Integer, primary_key=True, autoincrement=True)
    request_id: orm.Mapped[str] = orm.mapped_column(sql.ForeignKey("requests.id"), index=True)
    name: orm.Mapped[str] = orm.mapped_column(sql.String(40))
    value: orm.Mapped[Any] = orm.mapped_column(sql.JSON)
    ts: orm.Mapped[float] = orm.mapped_column(sql.Float)


class Setting(Base):
    """Settings of this database, such as the salt of user hashes."""

    __tablename__ = "settings"
    name: orm.Mapped[str] = orm.mapped_column(sql.String(40), primary_key=True)
    value: orm.Mapped[str] = orm.mapped_column(sql.String(200))


def database_url(database: str | Path) -> str:
    """A SQLAlchemy URL from a URL or a SQLite file path."""
    text = str(database)
    return text if "://" in text else f"sqlite:///{Path(text).expanduser().resolve()}"


def choice_id(completion: str, choice: int) -> str:
    """The row of a completion's answer number `choice`."""
    return completion if choice == 0 else f"{completion}-{choice}"


class Records:
    """An open traffic database; safe to use from several threads and, with other processes, through SQLite's WAL."""

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine
        self._session = orm.sessionmaker(engine, expire_on_commit=False)
        self._salt = self._setting("user_salt", secrets.token_hex(16))

    @classmethod
    def open(cls, database: str | Path, busy_timeout_ms: int = 10_000, create: bool = True) -> Records:
        """Open or create. Raises `UserError` when the database cannot be reached or is not one of ours."""
        url = database_url(database)
        is_sqlite = url.startswith("sqlite")
        if is_sqlite and not create and not Path(url.removeprefix("sqlite:///")).exists():
            raise UserError(f"There is no traffic database {database}", "check the path, or run `loopline serve`")
        try:
            engine = sql.create_engine(url)
            if is_sqlite:
                Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)

                @sql.event.listens_for(engine, "connect")
                def _pragmas(connection: Any, _record: Any) -> None:
                    cursor = connection.cursor()
                    # The timeout first: changing the journal mode itself may have to wait.
                    cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_ms)}")
                    cursor.execute("PRAGMA journal_mode=WAL")
                    cursor.execute("PRAGMA synchronous=NORMAL")
                    cursor.execute("PRAGMA foreign_keys=ON")
                    cursor.close()

            with engine.begin() as connection:
                # "If not exists" in the statement itself: two servers may open a new database at the same moment.
                for table in Base.metadata.sorted_tables:
                    connection.execute(sql.schema.CreateTable(table, if_not_exists=True))
                    for index in sorted(table.indexes, key=lambda index: str(index.name)):
                        connection.execute(sql.schema.CreateIndex(index, if_not_exists=True))
            return cls(engine)
        except (sql.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            raise UserError(
                f"The traffic database {database} cannot be opened ({error})",
                "give a writable SQLite path, or a SQLAlchemy URL whose driver is installed",
            ) from error

    def user_hash(self, user: str | None) -> str | None:
        """The salted sha256 of a user name; the name itself is never stored."""
        return hashlib.sha256(f"{self._salt}:{user}".encode()).hexdigest() if user else None

    def add_requests(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert answers; keys are `Request`'s columns, `ts` defaults to now."""
        with self._session.begin() as session:
            session.add_all(Request(**{"ts": time.time(), **row}) for row in rows)

    def add_feedback(self, request_id: str, name: str, value: Any) -> int:
        """Insert feedback and return its id. Raises `KeyError` for an unknown request."""
        with self._session.begin() as session:
            if session.get(Request, request_id) is None:
                raise KeyError(request_id)
            row = Feedback(request_id=request_id, name=name, value=value, ts=time.time())
            session.add(row)
            session.flush()
            return row.id

    def requests(self) -> list[Request]:
        """All answers, oldest first."""
        with self._session() as session:
            return list(session.scalars(sql.select(Request).order_by(Request.ts, Request.id)))

    def feedback(self) -> list[Feedback]:
        """All feedback, oldest first."""
        with self._session() as session:
            return list(session.scalars(sql.select(Feedback).order_by(Feedback.id)))

    def close(self) -> None:
        """Close connections; SQLite folds its write-ahead log back into the file."""
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self._engine.dispose()

    def _setting(self, name: str, default: str) -> str:
        with self._session() as session:
            row = session.get(Setting, name)
            if row is None:
                try:
                    session.add(Setting(name=name, value=default))
                    session.commit()
                    return default
                except sql.exc.IntegrityError:
                    # Another process opened the new database at the same moment; its salt holds.
                    session.rollback()
                    row = session.get_one(Setting, name)
            return row.value
