"""get, query and set, as they are the same for every kind of management object."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from sandbox.stalwart import ids
from sandbox.stalwart.errors import MethodError, SetError
from sandbox.stalwart.fields import Fields, complete, patched
from sandbox.state import Document, State

Arguments = dict[str, Any]
# Replaces references to objects created earlier in the request.
Resolve = Callable[[Any], Any]

# The arguments of each method with their types; null stands for "not given".
_GET = {"accountId": str, "ids": list, "properties": list}
_QUERY = {
    "accountId": str,
    "filter": dict,
    "sort": list,
    "position": int,
    "anchor": str,
    "anchorOffset": int,
    "limit": int,
    "calculateTotal": bool,
}
_STRINGS = frozenset({"ids", "properties", "destroy"})
_SET = {"accountId": str, "create": dict, "update": dict, "destroy": list, "ifInState": str}

MAX_OBJECTS = 500
MAX_IDS_IN_QUERY = 5000


class Registry(ABC):
    """All objects of one kind. Subclasses state the fields and filters, and the rules among objects."""

    kind: ClassVar[str]
    table: ClassVar[str]
    fields: ClassVar[Fields]
    filters: ClassVar[frozenset[str]]

    def __init__(self, state: State, account_id: str) -> None:
        self._state = state
        self._account_id = account_id
        self._objects = state.table(self.table)
        # Whether the next create that loses its race has written or not; None = it wins.
        self.lose_next_create: bool | None = None

    @abstractmethod
    def prepare(self, document: Document, stored: Document | None) -> Document:
        """Return a checked object in its normal form as it will be stored, or raise SetError."""

    @abstractmethod
    def matches(self, document: Document, name: str, value: Any) -> bool:
        """Return whether an object meets one condition of a filter."""

    def links(self, _object_id: str) -> Iterator[Document]:
        """Yield `{object, id}` of everything that keeps this object from being destroyed."""
        yield from ()

    def present(self, document: Document, _properties: frozenset[str]) -> Document:
        """Return an object as callers see it: with computed properties, without secrets."""
        return document

    def everything(self) -> list[Document]:
        """Return the stored objects, oldest first."""
        return list(self._objects)

    def get(self, arguments: Arguments, resolve: Resolve) -> Document:
        """Carry out x:Kind/get: `ids: null` means the newest."""
        check_arguments(arguments, _GET)
        known = frozenset({"id", *self.fields})
        properties = frozenset(arguments.get("properties") or known) | {"id"}
        if not properties <= known:
            raise MethodError("invalidArguments", f"Unknown properties: {', '.join(sorted(properties - known))}")
        wanted = resolve(arguments.get("ids"))
        if wanted is None:
            wanted = [document["id"] for document in self._newest_first()][:MAX_OBJECTS]
        if len(wanted) > MAX_OBJECTS:
            raise MethodError("requestTooLarge", f"At most {MAX_OBJECTS} ids can be fetched")
        found = [document for object_id in wanted if (document := self._objects.get(object_id)) is not None]
        shown = [self.present(document, properties) for document in found]
        return {
            "accountId": self._account_id,
            "list": [{name: value for name, value in document.items() if name in properties} for document in shown],
            "notFound": [object_id for object_id in wanted if object_id not in self._objects],
        }

    def query(self, arguments: Arguments, resolve: Resolve) -> Document:
        """Carry out x:Kind/query: conditions are only ever joined by AND, order is newest first unless asked."""
        check_arguments(arguments, _QUERY)
        conditions = list(self._conditions(resolve(arguments.get("filter")) or {}))
        rows = [row for row in self._sorted(arguments.get("sort")) if self._meets(row, conditions)]
        found = [row["id"] for row in rows]
        position = arguments.get("position") or 0
        if position < 0:
            position = max(0, len(found) + position)
        if arguments.get("anchor") is not None:
            if arguments["anchor"] not in found:
                raise MethodError("anchorNotFound")
            position = max(0, found.index(arguments["anchor"]) + (arguments.get("anchorOffset") or 0))
        limit = arguments.get("limit")
        if limit is not None and limit < 0:
            raise MethodError("invalidArguments", "limit must not be negative")
        limit = MAX_IDS_IN_QUERY if limit is None else min(limit, MAX_IDS_IN_QUERY)
        answer: Document = {
            "accountId": self._account_id,
            "queryState": "n",
            "canCalculateChanges": False,
            "position": position,
            "ids": found[position : position + limit],
        }
        return {**answer, "total": len(found)} if arguments.get("calculateTotal") else answer

    def set(self, arguments: Arguments, resolve: Resolve, remember: Callable[[str, str], None]) -> Document:
        """Carry out x:Kind/set: each object is its own write, and members without content are left out.

        `remember` is told the creation id and the id of each new object, so that later references find it.
        """
        check_arguments(arguments, _SET)
        create, update = arguments.get("create") or {}, arguments.get("update") or {}
        destroy = resolve(arguments.get("destroy")) or []
        if len(create) + len(update) + len(destroy) > MAX_OBJECTS:
            raise MethodError("requestTooLarge", f"At most {MAX_OBJECTS} objects can be set")
        done: dict[str, Any] = {"created": {}, "updated": {}, "destroyed": []}
        refused: dict[str, Any] = {"notCreated": {}, "notUpdated": {}, "notDestroyed": {}}
        for creation_id, sent in create.items():
            try:
                object_id = self._create(resolve(sent))
            except SetError as error:
                refused["notCreated"][creation_id] = error.body
                continue
            remember(creation_id, object_id)
            done["created"][creation_id] = {"id": object_id}
        for object_id, patch in resolve(update).items():
            try:
                if object_id in destroy:
                    raise SetError("willDestroy")
                self._update(object_id, patch)
                done["updated"][object_id] = None
            except SetError as error:
                refused["notUpdated"][object_id] = error.body
        for object_id in destroy:
            try:
                self._destroy(object_id)
                done["destroyed"].append(object_id)
            except SetError as error:
                refused["notDestroyed"][object_id] = error.body
        return {
            "accountId": self._account_id,
            **{name: content for name, content in {**done, **refused}.items() if content},
        }

    def _create(self, sent: Any) -> str:
        if not isinstance(sent, dict):
            raise SetError("invalidProperties", "An object is expected.")
        document = self.prepare(complete(self.fields, sent), None)
        lost, self.lose_next_create = self.lose_next_create, None
        if lost is False:
            raise MethodError("serverUnavailable")
        object_id = self._insert(document)
        if lost:
            raise MethodError("serverUnavailable")
        return object_id

    def _insert(self, document: Document) -> str:
        object_id = ids.encode(self._state.next_number(self.table))
        stored = {**document, "id": object_id, "createdAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._write(stored)
        return object_id

    def _write(self, document: Document) -> None:
        self._objects.put(document["id"], document)

    def _erase(self, object_id: str) -> None:
        self._objects.delete(object_id)

    def _update(self, object_id: str, patch: Any) -> None:
        stored = self._objects.get(object_id)
        if stored is None:
            raise SetError("notFound")
        if not isinstance(patch, dict):
            raise SetError("invalidPatch", "An object is expected.")
        self._write(self.prepare(patched(self.fields, stored, patch), stored))

    def _destroy(self, object_id: str) -> None:
        if object_id not in self._objects:
            raise SetError("notFound")
        linked = list(self.links(object_id))
        if linked:
            raise SetError("objectIsLinked", objectId={"object": self.kind, "id": object_id}, linkedObjects=linked)
        self._erase(object_id)

    def _newest_first(self) -> list[Document]:
        return sorted(self._objects, key=lambda document: ids.decode(document["id"]), reverse=True)

    def _sorted(self, sort: Any) -> list[Document]:
        rows = self._newest_first()
        if not sort:
            return rows
        if not isinstance(sort[0], dict) or not isinstance(sort[0].get("property"), str):
            raise MethodError("invalidArguments", "A comparator is an object with a property")
        # Only the first comparator counts.
        by, ascending = sort[0]["property"], sort[0].get("isAscending", True)
        if by == "id":
            return rows[::-1] if ascending else rows
        if by not in self.filters or by not in self.fields or self.fields[by].type is not str:
            raise MethodError("unsupportedSort", f"Cannot sort by {by}")
        return sorted(rows, key=lambda document: document[by] or "", reverse=not ascending)

    def _conditions(self, sent: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(sent, dict):
            raise MethodError("invalidArguments", "filter must be an object or null")
        if "operator" in sent:
            if sent["operator"] != "AND":
                raise MethodError("unsupportedFilter", "Only AND is supported")
            parts = sent.get("conditions")
            if not isinstance(parts, list):
                raise MethodError("invalidArguments", "conditions must be a list")
            for part in parts:
                yield from self._conditions(part)
            return
        for name, value in sent.items():
            if name not in self.filters:
                raise MethodError("unsupportedFilter", f"Cannot filter by {name}")
            yield name, value

    def _meets(self, document: Document, conditions: list[tuple[str, Any]]) -> bool:
        return all(self.matches(document, name, value) for name, value in conditions)


def words(*texts: Any) -> set[str]:
    """Return the words of some texts, as the search index cuts them."""
    return {word for text in texts if text is not None for word in re.findall(r"[a-z0-9]+", str(text).lower())}


def check_arguments(arguments: Arguments, known: Mapping[str, type]) -> None:
    """Raise MethodError for an argument of an unknown name or a wrong type; ids are strings."""
    for name, value in arguments.items():
        if name not in known:
            raise MethodError("invalidArguments", f"Unknown argument: {name}")
        if value is not None and not isinstance(value, known[name]):
            raise MethodError("invalidArguments", f"Invalid value for {name}")
        if name in _STRINGS and any(not isinstance(entry, str) for entry in arguments[name] or ()):
            raise MethodError("invalidArguments", f"{name} must be a list of strings")
