"""What an endpoint is, and the list answer that most of them share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.state import Document
from sandbox.stripe.errors import ParameterError, no_such
from sandbox.stripe.params import Check, Params, either, fields, number, text

DEFAULT_LIMIT = 10
# The end of the year 2200: far enough, and dates can still be reckoned with.
LATEST_TIME = 7_289_654_399

_TIME = number(0, LATEST_TIME)
LIST_FIELDS: dict[str, Check] = {
    "limit": number(1, 100),
    "starting_after": text,
    "ending_before": text,
    "created": either(_TIME, fields({"gt": _TIME, "gte": _TIME, "lt": _TIME, "lte": _TIME})),
}


@dataclass(frozen=True)
class Endpoint:
    """One call of the API: `check` sees the decoded parameters, then `run` gets its result and the path's id."""

    method: str
    path: str
    check: Check
    run: Callable[..., Document]


def new_id(prefix: str) -> str:
    """Return an id that tells its kind and nothing else."""
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def page(url: str, kind: str, stored: Iterable[Document], params: Params, keep: Callable[[Document], bool]) -> Document:
    """Return one page, newest first.

    The cursor is looked up before filtering, so that paging goes on after an object that has ceased to match.
    """
    if "starting_after" in params and "ending_before" in params:
        raise ParameterError("You can only pass one of starting_after and ending_before", param="starting_after")
    rows = list(stored)[::-1]
    limit: int = params.get("limit", DEFAULT_LIMIT)
    backwards = "ending_before" in params
    if backwards:
        rows = rows[: _position(rows, kind, params["ending_before"], "ending_before")]
    elif "starting_after" in params:
        rows = rows[_position(rows, kind, params["starting_after"], "starting_after") + 1 :]
    found = [row for row in rows if _created_within(row, params.get("created", {})) and keep(row)]
    data = found[-limit:] if backwards else found[:limit]
    return {"object": "list", "url": url, "has_more": len(found) > limit, "data": data}


def agrees(row: Document, params: Params, *names: str) -> bool:
    """Return whether the row has the value of each named filter that was sent."""
    return all(row[name] == params[name] for name in names if name in params)


def _position(rows: list[Document], kind: str, object_id: str, param: str) -> int:
    for position, row in enumerate(rows):
        if row["id"] == object_id:
            return position
    raise no_such(kind, object_id, param=param)


def _created_within(row: Document, bounds: int | dict[str, int]) -> bool:
    created: int = row["created"]
    if isinstance(bounds, int):
        return created == bounds
    holds: dict[str, Callable[[Any], bool]] = {
        "gt": lambda bound: created > bound,
        "gte": lambda bound: created >= bound,
        "lt": lambda bound: created < bound,
        "lte": lambda bound: created <= bound,
    }
    return all(holds[name](bound) for name, bound in bounds.items())
