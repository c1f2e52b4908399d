"""Domains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import idna

from sandbox.stalwart.accounts import Accounts
from sandbox.stalwart.dkim import DkimSignatures
from sandbox.stalwart.errors import SetError
from sandbox.stalwart.fields import NAME, READ_ONLY, SET, TEXT, Field, Fields, variant
from sandbox.stalwart.registry import Registry, words
from sandbox.stalwart.zone import zone_file
from sandbox.state import Document, State

_DAY_MS = 86_400_000
_AUTOMATIC_DKIM: dict[str, Any] = {
    "@type": "Automatic",
    "algorithms": {"Dkim1Ed25519Sha256": True, "Dkim1RsaSha256": True},
    "deleteAfter": 30 * _DAY_MS,
    "retireAfter": 7 * _DAY_MS,
    "rotateAfter": 90 * _DAY_MS,
    "selectorTemplate": "v{version}-{algorithm}-{date-%Y%m%d}",
}
_DOMAIN_NAME = re.compile(r"([a-z0-9_]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9-]*[a-z][a-z0-9-]*")


class Domains(Registry):
    """Mail domains; a name or alias exists once on the server."""

    kind: ClassVar[str] = "x:Domain"
    table: ClassVar[str] = "domains"
    filters: ClassVar[frozenset[str]] = frozenset({"text", "name", "aliases", "memberTenantId"})
    fields: ClassVar[Fields] = {
        "aliases": SET,
        "allowRelaying": Field(bool, default=False),
        "catchAllAddress": TEXT,
        "certificateManagement": variant("Manual", "Automatic"),
        "createdAt": READ_ONLY,
        "description": TEXT,
        "directoryId": TEXT,
        "dkimManagement": variant("Automatic", "Manual"),
        "dnsManagement": variant("Manual", "Automatic"),
        "dnsZoneFile": READ_ONLY,
        "isEnabled": Field(bool, default=True),
        "logo": TEXT,
        "memberTenantId": TEXT,
        "name": NAME,
        "reportAddressUri": Field(str, default="mailto:postmaster", nullable=True),
        "subAddressing": variant("Enabled", "Custom", "Disabled"),
    }

    def __init__(
        self, state: State, account_id: str, mail_host: str, signatures: DkimSignatures, accounts: Accounts
    ) -> None:
        super().__init__(state, account_id)
        self._mail_host = mail_host
        self._signatures = signatures
        self._accounts = accounts

    def prepare(self, document: Document, stored: Document | None) -> Document:
        """Normalise the names and refuse those that another domain has."""
        document["name"] = normal_domain("name", document["name"])
        document["aliases"] = {normal_domain("aliases", alias): True for alias in document["aliases"]}
        if document["dkimManagement"]["@type"] == "Automatic":
            document["dkimManagement"] = {**_AUTOMATIC_DKIM, **document["dkimManagement"]}
        for other in self._objects:
            if stored is not None and other["id"] == stored["id"]:
                continue
            taken = {other["name"], *other["aliases"]}
            for name, names in (("name", {document["name"]}), ("aliases", set(document["aliases"]))):
                if names & taken:
                    holder = {"object": self.kind, "id": other["id"]}
                    raise SetError("primaryKeyViolation", properties=[name], objectId=holder)
        return document

    def links(self, object_id: str) -> Iterator[Document]:
        """Yield the accounts with an address in the domain and its DKIM signatures."""
        for account in self._accounts.referring():
            if object_id in (account["domainId"], *(alias["domainId"] for alias in account["aliases"].values())):
                yield {"object": "x:Account", "id": account["id"]}
        for signature in self._signatures.of_domain(object_id):
            yield {"object": self._signatures.kind, "id": signature["id"]}

    def present(self, document: Document, properties: frozenset[str]) -> Document:
        """Return the domain, with its zone if that was asked for."""
        if "dnsZoneFile" not in properties:
            return document
        signatures = self._signatures.of_domain(document["id"])
        return {**document, "dnsZoneFile": zone_file(document["name"], self._mail_host, signatures)}

    def matches(self, document: Document, name: str, value: Any) -> bool:
        """Compare names as a whole, texts by word."""
        match name:
            case "text":
                return words(value) <= words(document["name"], document["description"])
            case "aliases":
                return str(value).lower() in document["aliases"]
            case "name":
                return bool(document["name"] == str(value).lower())
            case _:
                return bool(document[name] == value)

    def _write(self, document: Document) -> None:
        super()._write(document)
        self._signatures.schedule(document)

    def _erase(self, object_id: str) -> None:
        super()._erase(object_id)
        self._signatures.unschedule(object_id)


def normal_domain(owner: str, name: Any) -> str:
    """Return a domain name as it is stored: in lower case, with A-labels."""
    try:
        normal = idna.encode(str(name).strip(), uts46=True).decode()
    except idna.IDNAError:
        normal = ""
    if not _DOMAIN_NAME.fullmatch(normal):
        problem = {"type": "Invalid", "property": owner, "value": str(name)}
        raise SetError("validationFailed", "Invalid domain name.", validationErrors=[problem])
    return normal
