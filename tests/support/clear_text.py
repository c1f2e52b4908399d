"""What of a job can be read by somebody without the keys: in its history, and in the server's own file."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def strings_of(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a JSON document with the name it stands under, and what those that are base64 stand for."""
    match value:
        case dict():
            for inner, each in value.items():
                yield "", inner
                yield from strings_of(each, inner)
        case list():
            for each in value:
                yield from strings_of(each, name)
        case str():
            yield name, value
            with contextlib.suppress(ValueError):
                yield name, base64.b64decode(value, validate=True).decode("latin-1")


def stored_by_server(database: Path) -> bytes:
    """Return what a Temporal server has stored: every row, and the bare files, which hold what was deleted too."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = list(_rows(connection))
    files = [path.read_bytes() for path in sorted(database.parent.glob(f"{database.name}*"))]
    return b"\n".join(rows + files)


def _rows(connection: sqlite3.Connection) -> Iterator[bytes]:
    connection.text_factory = bytes
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in connection.execute(f'SELECT * FROM "{table.decode()}"'):
            yield b" ".join(each for each in row if isinstance(each, bytes))
