"""A ring of AES-256 keys: the first seals, all open, so that keys can change while what they sealed stays readable."""

from __future__ import annotations

import base64
import os
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# The first bytes of every development key: its id may be changed, its bytes still tell.
DEVELOPMENT_KEY_PREFIX = b"dev-"

_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY_ID_IN_WORDS = "at most 64 characters of A-Z a-z 0-9 . _ -"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class CannotOpen(Exception):
    """What was sealed cannot be opened with this ring; the message names the key and no secret."""


class KeyRing:
    """Seals with AES-256-GCM under the first of its keys, and opens under any of them."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        """Take keys by id, at least one; the first is the current one."""
        self.current = next(iter(keys))
        self.has_development_key = any(key.startswith(DEVELOPMENT_KEY_PREFIX) for key in keys.values())
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Return the ring written as `id:base64,id:base64`.

        Raises:
            ValueError: an entry is wrong. It is named by its place, since in a wrong entry any part may be the key.
        """
        keys: dict[str, bytes] = {}
        for place, entry in enumerate(text.split(","), start=1):
            key_id, _, encoded = entry.strip().partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except ValueError:
                key = b""
            if not _KEY_ID.fullmatch(key_id) or len(key) != _KEY_BYTES:
                raise ValueError(f"key {place} is not an id ({_KEY_ID_IN_WORDS}), a colon, and 32 bytes in base64")
            if key_id in keys or key in keys.values():
                raise ValueError(f"the id or the bytes of key {place} stand there twice")
            keys[key_id] = key
        return cls(keys)

    def seal(self, clear: bytes, purpose: bytes) -> tuple[str, bytes]:
        """Return the id of the current key and the sealed bytes, which open for the same purpose and key id only."""
        nonce = os.urandom(_NONCE_BYTES)
        return self.current, nonce + self._ciphers[self.current].encrypt(nonce, clear, _bound(purpose, self.current))

    def open(self, key_id: str, sealed: bytes, purpose: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            CannotOpen: the key is not in the ring, or the bytes are not what was sealed for this purpose.
        """
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise CannotOpen(f"The key {key_id[:64]!r} is not among the keys given.")
        try:
            return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(purpose, key_id))
        # A cut one may be too short to hold a nonce.
        except (InvalidTag, ValueError):
            raise CannotOpen(f"This is not what was sealed with the key {key_id[:64]!r}.") from None


def _bound(purpose: bytes, key_id: str) -> bytes:
    return purpose + b"\0" + key_id.encode()
