"""Documents of one stand-in, kept in memory and written through to SQLite, so that a killed stand-in resumes."""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Table:
    """Documents of one kind by key, in the order of insertion."""

    def __init__(self, name: str, state: State, connection: sqlite3.Connection) -> None:
        self._name = name
        # Kept, because a state closes its file when nobody has it any more.
        self._state = state
        self._connection = connection
        rows = connection.execute("SELECT key, body FROM documents WHERE kind = ? ORDER BY position", (name,))
        self._documents: dict[str, Document] = {key: json.loads(body) for key, body in rows}

    def __iter__(self) -> Iterator[Document]:
        """Iterate over a copy of the list, so that the table may be changed meanwhile."""
        return iter(list(self._documents.values()))

    def __len__(self) -> int:
        """Return how many documents there are."""
        return len(self._documents)

    def __contains__(self, key: object) -> bool:
        """Say whether there is a document of that key."""
        return key in self._documents

    def get(self, key: str) -> Document | None:
        """Return the stored document itself: after changing it, call `put`."""
        return self._documents.get(key)

    def put(self, key: str, document: Document) -> Document:
        """Insert or replace a document; it is on disk when this returns."""
        self._documents[key] = document
        self._connection.execute(
            "INSERT INTO documents (kind, key, body) VALUES (?, ?, ?) "
            "ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body",
            (self._name, key, json.dumps(document)),
        )
        return document

    def delete(self, key: str) -> Document | None:
        """Remove a document and return it, or None if there was none."""
        self._connection.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (self._name, key))
        return self._documents.pop(key, None)


class State:
    """All tables of one stand-in and its counters."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the state at a path, or one in memory that ends with the process."""
        self._connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        # WAL with NORMAL loses nothing when the process is killed; only a power cut could.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS documents ("
            "position INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, key TEXT, body TEXT, UNIQUE (kind, key))"
        )
        self._tables: dict[str, Table] = {}
        weakref.finalize(self, self._connection.close)

    def table(self, name: str) -> Table:
        """Return the table of that name, empty if nothing was ever put there."""
        if name not in self._tables:
            self._tables[name] = Table(name, self, self._connection)
        return self._tables[name]

    def next_number(self, counter: str) -> int:
        """Return 1, 2, 3, ... for this counter, never the same number twice."""
        counters = self.table("counters")
        document = counters.get(counter) or {"value": 0}
        document["value"] += 1
        counters.put(counter, document)
        value: int = document["value"]
        return value

    def close(self) -> None:
        """Close the file; the state can be opened again."""
        self._connection.close()
