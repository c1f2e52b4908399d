"""What is read from and written to Stalwart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from integrations.model import VendorModel

_ALGORITHMS = {"Dkim1Ed25519Sha256": "ed25519-sha256", "Dkim1RsaSha256": "rsa-sha256"}


def _members(value: object) -> object:
    # Source: a set is an object whose keys are the members; sorted, because equal sets must compare equal.
    return tuple(sorted(value)) if isinstance(value, Mapping) else value


def _algorithm(value: object) -> object:
    return _ALGORITHMS.get(value, value) if isinstance(value, str) else value


VendorSet = Annotated[tuple[str, ...], BeforeValidator(_members)]


class ServerInfo(VendorModel):
    """Which edition answers (`oss`, `community`, `enterprise`), and what our credential may do there."""

    edition: str
    permissions: frozenset[str]


class Domain(VendorModel):
    """A mail domain; its name is unique over the whole server."""

    id: str
    name: str
    description: str | None = None


class DnsRecord(VendorModel):
    """One record to be published; host names are absolute, without the trailing dot, TXT strings are joined."""

    name: str
    type: str
    value: str


class DkimKey(VendorModel):
    """One signing key of a domain.

    `algorithm` is `ed25519-sha256` or `rsa-sha256`, `stage` is `active`, `pending`, `retiring` or `retired`.
    """

    id: str
    selector: str
    algorithm: Annotated[str, BeforeValidator(_algorithm)] = Field(validation_alias="@type")
    stage: str = "active"


def _kind(value: object) -> object:
    # Source: methods carry the prefix, and nothing promises that links do.
    return value.removeprefix("x:") if isinstance(value, str) else value


class Link(VendorModel):
    """An object that refers to another one: `Account`, `DkimSignature`, `MailingList`, `Role`, ..."""

    kind: Annotated[str, BeforeValidator(_kind)] = Field(validation_alias="object")
    id: str


class Role(VendorModel):
    """A set of permissions; nothing about it is unique but its id."""

    id: str
    description: str = ""
    disabled_permissions: VendorSet = Field(default=(), validation_alias="disabledPermissions")
    role_ids: VendorSet = Field(default=(), validation_alias="roleIds")


class RoleSpec(VendorModel):
    """A role to be created.

    `inherits` holds the ids of the roles it extends; with none, its members may do nothing at all. What it disables
    wins over what it inherits. The description carries our mark.
    """

    description: str = Field(min_length=1)
    disabled_permissions: tuple[str, ...] = ()
    inherits: tuple[str, ...] = ()


class Mailbox(VendorModel):
    """A user account; `quota_bytes` is None when unlimited, `role_ids` is empty for the built-in roles."""

    id: str
    local_part: str = Field(validation_alias="name")
    domain_id: str = Field(validation_alias="domainId")
    description: str | None = None
    role_ids: VendorSet = ()
    quota_bytes: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "domainId" not in data:
            return data
        roles, quotas = data.get("roles") or {}, data.get("quotas") or {}
        return {**data, "role_ids": roles.get("roleIds") or {}, "quota_bytes": quotas.get("maxDiskQuota")}


class MailboxSpec(VendorModel):
    """A mailbox to be created, without credentials: people log in through the identity provider."""

    local_part: str = Field(min_length=1)
    domain_id: str
    description: str
    role_id: str
    quota_bytes: int = Field(gt=0)
