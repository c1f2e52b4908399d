"""Mailboxes and groups."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from sandbox.stalwart import permissions
from sandbox.stalwart.errors import SetError, invalid, required
from sandbox.stalwart.fields import MASK, NAME, READ_ONLY, SET, TEXT, Field, Fields, variant
from sandbox.stalwart.registry import Registry, words
from sandbox.state import Document, State

_QUOTAS = frozenset(
    f"max{name}"
    for name in (
        *("Emails", "Mailboxes", "EmailSubmissions", "EmailIdentities", "ParticipantIdentities", "SieveScripts"),
        *("PushSubscriptions", "Calendars", "CalendarEvents", "CalendarEventNotifications", "AddressBooks"),
        *("ContactCards", "Files", "Folders", "MaskedAddresses", "AppPasswords", "ApiKeys", "PublicKeys", "DiskQuota"),
    )
)
_USER_ONLY = frozenset({"credentials", "encryptionAtRest", "memberGroupIds"})
_ROLES = {"User": ("User", "Admin", "Custom"), "Group": ("Default", "Custom")}
_SHORTEST_SECRET, _LONGEST_SECRET = 8, 128
# Stands for the server's strength score: refuses what repeats itself, accepts every generated password.
_LEAST_DISTINCT_CHARACTERS = 6


class Accounts(Registry):
    """Users and groups; an address exists once on the server.

    A destroyed account is gone at once for whoever asks for it, and its address is free; a background task erases its
    mail later. Whether the account keeps its domain and role until then was never seen: here it does.
    """

    kind: ClassVar[str] = "x:Account"
    table: ClassVar[str] = "accounts"
    filters: ClassVar[frozenset[str]] = frozenset(
        {"text", "@type", "name", "domainId", "memberGroupIds", "memberTenantId"}
    )
    fields: ClassVar[Fields] = {
        "@type": NAME,
        "aliases": Field(dict, default={}),
        "createdAt": READ_ONLY,
        "credentials": Field(dict, default={}),
        "description": TEXT,
        "domainId": NAME,
        "emailAddress": READ_ONLY,
        "encryptionAtRest": variant("Disabled", "Aes128", "Aes256", "Aes256Gcm", "ChaCha20Poly1305"),
        "locale": Field(str, default="en_US"),
        "memberGroupIds": SET,
        "memberTenantId": TEXT,
        "name": NAME,
        "permissions": variant("Inherit", "Merge", "Replace"),
        "quotas": Field(dict, default={}),
        "roles": Field(dict),
        "timeZone": TEXT,
        "usedDiskQuota": Field(int, read_only=True),
    }

    def __init__(self, state: State, account_id: str, erase_delay_seconds: float) -> None:
        super().__init__(state, account_id)
        self._domains = state.table("domains")
        self._roles = state.table("roles")
        self._erasures = state.table("account_erasures")
        self._erase_delay_seconds = erase_delay_seconds

    def settle(self) -> None:
        """Erase what is due; to be called before each request, so nobody can tell that it happens late."""
        for erasure in self._erasures:
            if erasure["dueAt"] <= time.time():
                self._erasures.delete(erasure["id"])

    def erasures(self) -> list[Document]:
        """Return the destroyed accounts whose mail is still to be erased."""
        return list(self._erasures)

    def referring(self) -> Iterator[Document]:
        """Yield every account that keeps its domain and role from being destroyed."""
        yield from self._objects
        yield from self._erasures

    def prepare(self, document: Document, stored: Document | None) -> Document:
        """Normalise names, hash secrets, and check parents, permissions and addresses."""
        kind = document["@type"]
        if kind not in _ROLES or (stored is not None and kind != stored["@type"]):
            raise invalid("@type", "@type must be User or Group, and stays what it is.")
        document["roles"] = document["roles"] or {"@type": _ROLES[kind][0]}
        if document["roles"].get("@type") == "Custom":
            document["roles"].setdefault("roleIds", {})
        if document["permissions"]["@type"] != "Inherit":
            document["permissions"] = {"enabledPermissions": {}, "disabledPermissions": {}, **document["permissions"]}
        document["name"] = _local_part(document["name"])
        for alias in document["aliases"].values():
            if not isinstance(alias, dict) or not all(isinstance(alias.get(key), str) for key in ("name", "domainId")):
                raise invalid("aliases", "An alias has a name and a domainId.")
            alias.update(name=_local_part(alias["name"]), enabled=alias.get("enabled", True))
        self._check_parents(document)
        _check_permissions(document)
        _check_quotas(document["quotas"])
        if kind == "Group" and (document["credentials"] or document["memberGroupIds"]):
            raise invalid("@type", "A group has neither credentials nor groups of its own.")
        document["credentials"] = _stored_credentials(document, stored)
        self._check_addresses(document, stored)
        return document

    def links(self, object_id: str) -> Iterator[Document]:
        """Yield the members of a group."""
        for account in self._objects:
            if object_id in account["memberGroupIds"]:
                yield {"object": self.kind, "id": account["id"]}

    def present(self, document: Document, _properties: frozenset[str]) -> Document:
        """Return the account with masked secrets and its address."""
        credentials = {key: {**entry, "secret": MASK} for key, entry in document["credentials"].items()}
        hidden = _USER_ONLY if document["@type"] == "Group" else frozenset()
        return {
            **{name: value for name, value in {**document, "credentials": credentials}.items() if name not in hidden},
            "emailAddress": self._address(document["name"], document["domainId"]),
            "usedDiskQuota": 0,
        }

    def matches(self, document: Document, name: str, value: Any) -> bool:
        """Compare names as a whole, texts by word."""
        match name:
            case "text":
                address = self._address(document["name"], document["domainId"])
                return words(value) <= words(address, document["description"])
            case "name":
                return bool(document["name"] == str(value).lower())
            case "memberGroupIds":
                return str(value) in document["memberGroupIds"]
            case _:
                return bool(document[name] == value)

    def _erase(self, object_id: str) -> None:
        account = self._objects.get(object_id)
        assert account is not None, "what is destroyed was there"
        # First, so that a stand-in killed in between still erases.
        self._erasures.put(object_id, {**account, "dueAt": time.time() + self._erase_delay_seconds})
        super()._erase(object_id)

    def _check_parents(self, document: Document) -> None:
        domain_ids = [document["domainId"], *(alias["domainId"] for alias in document["aliases"].values())]
        groups = {account["id"] for account in self._objects if account["@type"] == "Group"}
        for name, kind, wanted, known in (
            ("domainId", "x:Domain", domain_ids, self._domains),
            ("roles", "x:Role", document["roles"].get("roleIds", {}), self._roles),
            ("memberGroupIds", self.kind, document["memberGroupIds"], groups),
        ):
            for object_id in wanted:
                if object_id not in known:
                    parent = {"object": kind, "id": object_id}
                    raise SetError("invalidForeignKey", properties=[name], objectId=parent)

    def _check_addresses(self, document: Document, stored: Document | None) -> None:
        wanted = self._addresses(document)
        if len(set(wanted)) < len(wanted):
            raise SetError("primaryKeyViolation", "An alias repeats an address.", properties=["aliases"])
        for other in self._objects:
            if stored is not None and other["id"] == stored["id"]:
                continue
            taken = set(self._addresses(other)) & set(wanted)
            if taken:
                name = "name" if wanted[0] in taken else "aliases"
                holder = {"object": self.kind, "id": other["id"]}
                raise SetError("primaryKeyViolation", properties=[name], objectId=holder)

    def _addresses(self, document: Document) -> list[str]:
        named = [document, *document["aliases"].values()]
        return [self._address(entry["name"], entry["domainId"]) for entry in named]

    def _address(self, name: str, domain_id: str) -> str:
        domain = self._domains.get(domain_id)
        assert domain is not None, "a domain with addresses is not destroyed"
        return f"{name}@{domain['name']}"


def _local_part(name: str) -> str:
    normal = "".join(str(name).lower().split())
    if not normal or "@" in normal:
        problem = {"type": "Invalid", "property": "name", "value": str(name)}
        raise SetError("validationFailed", "The name is the local part.", validationErrors=[problem])
    return normal


def _check_permissions(document: Document) -> None:
    own = document["permissions"]
    permissions.check("permissions", own.get("enabledPermissions", {}), own.get("disabledPermissions", {}))
    if document["roles"].get("@type") not in _ROLES[document["@type"]]:
        raise invalid("roles", f"@type must be one of {', '.join(_ROLES[document['@type']])}.")


def _check_quotas(quotas: Document) -> None:
    for name, value in quotas.items():
        if name not in _QUOTAS or type(value) is not int or value < 0:
            raise invalid("quotas", f"Invalid quota {name}.")


def _stored_credentials(document: Document, stored: Document | None) -> Document:
    before = stored["credentials"] if stored is not None else {}
    return {key: _stored_credential(entry, before.get(key)) for key, entry in document["credentials"].items()}


def _stored_credential(entry: Any, before: Document | None) -> Document:
    if not isinstance(entry, dict) or entry.get("@type") != "Password":
        raise invalid("credentials", "Only passwords can be set here.")
    secret = entry.get("secret")
    if not isinstance(secret, str) or not secret:
        raise required("secret")
    if before is not None and secret in (MASK, before["secret"]):
        return {**entry, "secret": before["secret"], "credentialId": before["credentialId"]}
    if not secret.startswith(("$", "{")):
        within = _SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET
        if not within or len(set(secret)) < _LEAST_DISTINCT_CHARACTERS:
            raise invalid("secret", "The password is too weak.")
        # Nothing logs in with it here: what matters is that the clear text is not kept.
        salt = secrets.token_hex(8)
        secret = f"{{SSHA256}}{salt}:{hashlib.sha256((salt + secret).encode()).hexdigest()}"
    return {"credentialId": secrets.token_hex(4), **entry, "secret": secret}
