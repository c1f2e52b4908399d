"""Keys for payloads: the same id always gets the same bytes."""

from __future__ import annotations

import base64
import hashlib

from runtime.key_ring import KeyRing


def payload_keys(*ids: str) -> str:
    """Return keys as the setting holds them, the current one first."""
    return ",".join(f"{each}:{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}" for each in ids)


def key_ring(*ids: str) -> KeyRing:
    """Return a ring of such keys."""
    return KeyRing.parse(payload_keys(*ids))
