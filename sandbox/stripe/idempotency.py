"""Answers kept by idempotency key."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sandbox.state import State
from sandbox.stripe.errors import ParameterError

KEY_LENGTH = 255
KEPT_SECONDS = 24 * 3600


class IdempotencyStore:
    """Remembers status and body of what was carried out under a key, including refusals and failures."""

    def __init__(self, state: State) -> None:
        self._kept = state.table("idempotency_keys")
        # A process that dies while it works on a key loses nothing by forgetting that it did.
        self._in_use: set[str] = set()

    def find(self, key: str, fingerprint: str) -> tuple[int, Any] | None:
        """Return the kept answer, or None; refuse a key that stands for another request or is at work."""
        if len(key) > KEY_LENGTH:
            raise ParameterError(f"Idempotency keys can be at most {KEY_LENGTH} characters long")
        if key in self._in_use:
            raise ParameterError(
                "There is currently another in-progress request using this idempotent key",
                status=409,
                code="idempotency_key_in_use",
            )
        kept = self._kept.get(key)
        if kept is None or kept["created"] + KEPT_SECONDS <= time.time():
            return None
        if kept["fingerprint"] != fingerprint:
            raise ParameterError(
                "Keys for idempotent requests can only be used with the same parameters they were first used with",
                kind="idempotency_error",
            )
        return kept["status"], kept["body"]

    @contextmanager
    def using(self, key: str) -> Iterator[None]:
        """Hold a key while its request is carried out."""
        self._in_use.add(key)
        try:
            yield
        finally:
            self._in_use.discard(key)

    def keep(self, key: str, fingerprint: str, status: int, body: Any) -> None:
        """Remember an answer; the empty key stands for none."""
        if key:
            created = int(time.time())
            self._kept.put(
                key, {"key": key, "fingerprint": fingerprint, "status": status, "body": body, "created": created}
            )

    def expire(self) -> int:
        """Forget all keys, as a day would; return how many."""
        forgotten = list(self._kept)
        for document in forgotten:
            self._kept.delete(document["key"])
        return len(forgotten)


def fingerprint(method: str, path: str, params: Any) -> str:
    """Return what must be equal for two requests to be the same one."""
    canonical = json.dumps([method, path, params], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
