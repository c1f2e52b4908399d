"""What is read from and written to OCIS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import AliasPath, Field, model_validator

from integrations.model import VendorModel

# Source: role ids of a space's root, constant over 7.x; display names repeat between kinds of roles.
SPACE_VIEWER: Final = "a8d5fe5e-96e3-418d-825b-534dbdf22b99"
SPACE_EDITOR: Final = "58c63c02-1d89-4572-916a-870abc5a1b7d"
SPACE_MANAGER: Final = "312c0871-5ef7-4b3a-85b6-0e4074c64049"


class Group(VendorModel):
    """A group; names are unique without regard to case."""

    id: str
    name: str = Field(validation_alias="displayName")


class Space(VendorModel):
    """A project space. Nothing about it is unique but its id.

    Units: quotas in bytes; a total of 0 is unlimited. `quota_used` is None while the space is disabled.
    """

    id: str
    name: str
    drive_alias: str | None = Field(default=None, validation_alias="driveAlias")
    description: str | None = None
    quota_total: int | None = Field(default=None, validation_alias=AliasPath("quota", "total"))
    quota_used: int | None = Field(default=None, validation_alias=AliasPath("quota", "used"))
    disabled: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_deleted(cls, data: Any) -> Any:
        # Source: a disabled space has `root.deleted`, an enabled one has no such member.
        if isinstance(data, Mapping) and isinstance(data.get("root"), Mapping):
            return {**data, "disabled": "deleted" in data["root"]}
        return data


class SpaceSpec(VendorModel):
    r"""A project space to be created.

    Units: `quota_bytes` in bytes, 0 is unlimited. A negative one would be stored, and crash the vendor's audit service.
    Source: the name has 1 to 255 bytes and none of `/ \ . : ? * " > < |`, so it cannot be a domain name.
    """

    name: str = Field(min_length=1)
    drive_alias: str = Field(min_length=1)
    description: str
    quota_bytes: int = Field(ge=0)


class Member(VendorModel):
    """A group or a user in a space: one of the two ids is set."""

    permission_id: str = Field(validation_alias="id")
    role_ids: tuple[str, ...] = Field(default=(), validation_alias="roles")
    group_id: str | None = Field(default=None, validation_alias=AliasPath("grantedToV2", "group", "id"))
    user_id: str | None = Field(default=None, validation_alias=AliasPath("grantedToV2", "user", "id"))
