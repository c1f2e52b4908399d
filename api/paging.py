"""Opaque cursors of lists."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query

from domain.errors import Malformed

Limit = Annotated[int, Query(ge=1, le=500, description="how many at the most")]
Cursor = Annotated[str | None, Query(max_length=500, description="`nextCursor` of the page before")]
DEFAULT_LIMIT = 50


def encode_cursor(*parts: Any) -> str:
    """Return a cursor that holds the sort values of the last item of a page."""
    plain = [{"at": part.isoformat()} if isinstance(part, datetime) else part for part in parts]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, length: int) -> list[Any]:
    """Return what `encode_cursor` put in.

    Raises:
        Malformed: it was not made by this list.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        parts = json.loads(base64.urlsafe_b64decode(padded.encode()))
        if not isinstance(parts, list) or len(parts) != length:
            raise ValueError("another list's cursor")
        values = [datetime.fromisoformat(part["at"]) if isinstance(part, dict) else part for part in parts]
        if not all(isinstance(value, str | int | datetime) for value in values):
            raise ValueError("not a sort value")
        return values
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise Malformed("The cursor is not one of this list's.", code="cursor_malformed") from None
