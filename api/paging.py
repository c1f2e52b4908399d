"""Opaque cursors of lists."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Query

from domain.errors import Malformed

Limit = Annotated[int, Query(ge=1, le=500, description="how many at the most")]
# Room for the longest name, written in characters of four bytes.
Cursor = Annotated[str | None, Query(max_length=2000, description="`nextCursor` of the page before")]
DEFAULT_LIMIT = 50
T = TypeVar("T")

SortValue = str | datetime


def split_page(found: list[T], limit: int) -> tuple[list[T], T | None]:
    """Split what was read, one more than the page holds, into the page and its last item if more come after it."""
    page = found[:limit]
    return page, page[-1] if len(found) > limit else None


def encode_cursor(*values: SortValue) -> str:
    """Return a cursor that holds the sort values of the last item of a page."""
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain, ensure_ascii=False).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type[SortValue]) -> list[Any]:
    """Return what `encode_cursor` put in, if it was values of these types.

    Raises:
        Malformed: it was not made by this list.
    """
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(parts, list):
            raise TypeError("not the parts of a cursor")
        return [_sort_value(part, each) for part, each in zip(parts, types, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Malformed("The cursor is not one of this list's.", code="cursor_malformed") from None


def _sort_value(part: Any, wanted: type[SortValue]) -> SortValue:
    if not isinstance(part, str):
        raise TypeError("not a sort value")
    part.encode()  # JSON can spell surrogates that are no text
    return datetime.fromisoformat(part).astimezone(UTC) if wanted is datetime else part
