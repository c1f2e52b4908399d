"""Reads server-sent events as a client does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event."""

    id: int
    name: str
    data: dict[str, Any]


class EventReader:
    """Makes events of lines, and keeps what is no event."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.retry: list[int] = []
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """Take one line, and return the event that it completes."""
        if line:
            name, _, value = line.partition(":")
            if not name:
                self.comments.append(value.strip())
            elif name == "retry":
                self.retry.append(int(value))
            else:
                # A field that came twice would be a body over several lines.
                assert name not in self._fields, line
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if not fields:
            return None
        assert set(fields) == {"id", "event", "data"}, fields
        return Event(id=int(fields["id"]), name=fields["event"], data=json.loads(fields["data"]))
