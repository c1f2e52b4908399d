"""The few OData query options that the server understands, and the ones that it silently does not."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping

from starlette.datastructures import QueryParams

from sandbox.ocis.errors import GraphError, bad_request
from sandbox.state import Document

COMPARISON = re.compile(r"(?P<name>\w+)\s+(?P<operator>[a-z]+)\s+(?P<value>'[^']*'|\S+)")
JUNCTION = re.compile(r"\s(and|or)\s")
FUNCTION = re.compile(r"(\w+)\s*\(")


def equality(params: QueryParams) -> tuple[str, str] | None:
    """Return name and value of an `eq` filter, None without one.

    The caller applies the names it knows: the server accepts `eq` on any other name and returns everything.

    Raises:
        GraphError: 501 for any other operand, 400 for what is no expression.
    """
    text = params.get("$filter", "").strip()
    if not text:
        return None
    unquoted = re.sub(r"'[^']*'", "''", text)
    if function := FUNCTION.match(unquoted):
        raise _unsupported(function[1])
    if junction := JUNCTION.search(unquoted):
        raise _unsupported(junction[1])
    comparison = COMPARISON.fullmatch(text)
    if comparison is None:
        raise bad_request("invalid filter expression")
    if comparison["operator"] != "eq":
        raise _unsupported(comparison["operator"])
    return comparison["name"], comparison["value"].strip("'")


def ordered(documents: Iterable[Document], params: QueryParams, fields: Mapping[str, str]) -> list[Document]:
    """Return the documents by `$orderby`, in random order without it.

    Args:
        documents: what to put in order.
        params: the query of the request.
        fields: the names that it may be ordered by, with the field of the document that each stands for.
    """
    found = list(documents)
    name, _, direction = params.get("$orderby", "").strip().partition(" ")
    if not name:
        random.shuffle(found)
        return found
    if name not in fields:
        raise bad_request(f"we do not support <{name}> as a order parameter")
    return sorted(found, key=lambda document: document[fields[name]], reverse=direction.strip().lower() == "desc")


def _unsupported(operand: str) -> GraphError:
    return GraphError(501, "notSupported", f"unsupported filter operand: {operand}")
