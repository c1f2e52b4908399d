"""Permissions: which the service's key holds, and which it may therefore hand out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from sandbox.stalwart.errors import SetError, invalid

_VERBS = ("Get", "Query", "Create", "Update", "Destroy")
_MANAGED = ("Domain", "Account", "Role", "DkimSignature")
_USER_LEVEL = (
    "authenticate",
    "davPrincipalList",
    "davPrincipalMatch",
    "davPrincipalSearch",
    "davPrincipalSearchPropSet",
    "emailReceive",
    "emailSend",
    "jmapPrincipalChanges",
    "jmapPrincipalGet",
    "jmapPrincipalGetAvailability",
    "jmapPrincipalQuery",
    "jmapPrincipalQueryChanges",
)
HELD = (*_USER_LEVEL, *(f"sys{kind}{verb}" for kind in _MANAGED for verb in _VERBS))

# 0.15 wrote them in kebab-case, which this generation refuses.
_NAME = re.compile(r"[a-z][A-Za-z0-9]*")
_ADMINISTRATIVE = re.compile(r"(sys|action)[A-Z]|impersonate$|unlimited")


def check(owner: str, enabled: Iterable[str], disabled: Iterable[str]) -> None:
    """Raise SetError for names that are none, and for granting what the caller does not hold.

    Only administrative permissions can be lacking: the list of the user-level ones here is not the whole one.
    """
    granted = list(enabled)
    for name in (*granted, *disabled):
        if not _NAME.fullmatch(name):
            raise invalid(owner, f"Unknown permission {name}.")
    lacking = list(_lacking(granted))
    if lacking:
        raise SetError("forbidden", f"You are not authorized to grant permissions: {', '.join(lacking)}")


def _lacking(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if _ADMINISTRATIVE.match(name) and name not in HELD)
