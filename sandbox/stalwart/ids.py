"""Object ids: numbers in a private base32, short and sequential."""

from __future__ import annotations

_ALPHABET = "abcdefghijklmnopqrstuvwxyz792013"


def encode(number: int) -> str:
    """Return the id of a number: a, b, ..., 3, ba, bb, ..."""
    digits = ""
    while True:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
        if number == 0:
            return digits


def decode(object_id: str) -> int:
    """Return the number of an id that `encode` made."""
    number = 0
    for digit in object_id:
        number = number * len(_ALPHABET) + _ALPHABET.index(digit)
    return number
