"""Filters, order and pages of list answers.

What Authentik does not know it ignores: a misspelt filter, an empty value and an unknown order all give the whole list.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from starlette.datastructures import QueryParams

from sandbox.authentik.errors import ApiError, detail, invalid
from sandbox.state import Document

DEFAULT_PAGE_SIZE = 20
LARGEST_PAGE_SIZE = 100


class Filters:
    """Narrows a list of documents by the query parameters of one request."""

    def __init__(self, params: QueryParams, documents: Iterable[Document]) -> None:
        self._params = params
        self.found = list(documents)

    def keep(self, accepts: Callable[[Document], bool]) -> None:
        """Drop every document that is not accepted."""
        self.found = [document for document in self.found if accepts(document)]

    def exact(self, *names: str) -> None:
        """Keep documents whose field equals the parameter of the same name, blanks around it trimmed."""
        for name in names:
            if value := self.value(name):
                self.found = [document for document in self.found if document[name] == value]

    def flag(self, name: str, read: Callable[[Document], bool]) -> None:
        """Keep documents for which the boolean is as asked; anything but true and false is ignored."""
        asked = {"true": True, "false": False}.get(self.value(name).lower())
        if asked is not None:
            self.keep(lambda document: read(document) is asked)

    def any_of(self, name: str, choices: Iterable[str], read: Callable[[Document], Iterable[Any]]) -> None:
        """Keep documents with one of the values of a repeatable parameter; a value that is no choice is refused."""
        asked = [value for value in self._params.getlist(name) if value]
        known = set(choices)
        if unknown := [value for value in asked if value not in known]:
            raise invalid(name, f"Select a valid choice. {unknown[0]} is not one of the available choices.")
        if asked:
            self.keep(lambda document: any(str(value) in asked for value in read(document)))

    def identifier(self, name: str) -> None:
        """Keep the document with a UUID, in whichever way it is written."""
        if not (value := self.value(name)):
            return
        try:
            wanted = str(uuid.UUID(value))
        except ValueError:
            raise invalid(name, "Enter a valid UUID.") from None
        self.keep(lambda document: document[name] == wanted)

    def moments(self, *names: str) -> None:
        """Keep documents whose time lies before `<name>__lt` and after `<name>__gt`."""
        for name in names:
            if after := self._moment(f"{name}__gt"):
                self.found = [document for document in self.found if _moment(document[name]) > after]
            if before := self._moment(f"{name}__lt"):
                self.found = [document for document in self.found if _moment(document[name]) < before]

    def attributes(self) -> None:
        """Keep documents whose attributes contain the JSON object of `attributes`; `a__b` looks into `a`."""
        if not (value := self.value("attributes")):
            return
        try:
            wanted = json.loads(value)
        except ValueError:
            # Unlike every other validation error this one is a bare list.
            raise ApiError(400, ["filter: failed to parse JSON"]) from None
        if not isinstance(wanted, dict):
            raise ApiError(400, ["filter: value must be key:value mapping"])
        for path, expected in wanted.items():
            keys = path.split("__")
            self.found = [found for found in self.found if _look_up(found["attributes"], keys) == expected]

    def search(self, *names: str) -> None:
        """Keep documents in whose fields every word of `search` occurs."""
        for word in self.value("search").lower().split():
            self.found = [found for found in self.found if any(word in str(found[name]).lower() for name in names)]

    def value(self, name: str) -> str:
        """Return a parameter, empty if it was not sent."""
        return self._params.get(name, "").strip()

    def _moment(self, name: str) -> datetime | None:
        if not (value := self.value(name)):
            return None
        try:
            return _moment(value)
        except ValueError:
            raise invalid(name, "Enter a valid date/time.") from None


def ordered(documents: list[Document], params: QueryParams, fields: Sequence[str]) -> list[Document]:
    """Return the documents in the order of `ordering`, by the first of the fields if it names none of them."""
    asked = [part for part in params.get("ordering", "").split(",") if part.removeprefix("-") in fields]
    for part in reversed(asked or [fields[0]]):
        name = part.removeprefix("-")
        documents = sorted(documents, key=lambda document: document[name], reverse=part.startswith("-"))
    return documents


def page(documents: list[Document], params: QueryParams, render: Callable[[Document], Document]) -> Document:
    """Return one page as Authentik wraps it: page numbers, 0 where there is no such page.

    Raises:
        ApiError: 404 for a page past the end, which also happens when rows vanish while somebody pages.
    """
    size = min(_positive(params.get("page_size", "")) or DEFAULT_PAGE_SIZE, LARGEST_PAGE_SIZE)
    pages = max(1, -(-len(documents) // size))
    number = _positive(params.get("page", "1"))
    if not 1 <= number <= pages:
        raise detail(404, "Invalid page.")
    start = (number - 1) * size
    shown = documents[start : start + size]
    return {
        "pagination": {
            "next": number + 1 if number < pages else 0,
            "previous": number - 1,
            "count": len(documents),
            "current": number,
            "total_pages": pages,
            "start_index": start + 1 if shown else 0,
            "end_index": start + len(shown),
        },
        "results": [render(document) for document in shown],
        "autocomplete": {},
    }


def _positive(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() else 0


def _moment(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.astimezone()


def _look_up(attributes: Any, keys: list[str]) -> Any:
    for key in keys:
        attributes = attributes.get(key) if isinstance(attributes, dict) else None
    return attributes
