"""The types of fields in request bodies, each with the rules it obeys."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from domain.ids import SLUG_MAX, SLUG_MIN, is_slug
from domain.people import normalise_email
from domain.tenants import normalise_domain


def _slug(text: str) -> str:
    if not is_slug(text):
        raise ValueError(
            f"A slug has {SLUG_MIN} to {SLUG_MAX} characters: lower-case letters, digits and single hyphens between, "
            "beginning with a letter."
        )
    return text


def _line(text: str) -> str:
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in REORDERING for each in text):
        raise ValueError("Control characters, line breaks and changes of the writing direction are not allowed.")
    if all(unicodedata.category(each)[0] in "CZ" for each in text):
        raise ValueError("There is nothing to be seen in it.")
    return text


# They make a text read otherwise than it is stored; letters written from right to left need none of them.
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
Slug = Annotated[str, AfterValidator(_slug)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_line)]
Domain = Annotated[str, StringConstraints(max_length=300), AfterValidator(normalise_domain)]
Email = Annotated[str, StringConstraints(max_length=254), AfterValidator(normalise_email)]
# It becomes the login name, and Authentik has no longer ones.
LoginEmail = Annotated[str, StringConstraints(max_length=150), AfterValidator(normalise_email)]
