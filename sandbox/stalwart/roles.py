"""Roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from sandbox.stalwart import permissions
from sandbox.stalwart.accounts import Accounts
from sandbox.stalwart.errors import SetError
from sandbox.stalwart.fields import NAME, READ_ONLY, SET, TEXT, Fields
from sandbox.stalwart.registry import Registry, words
from sandbox.state import Document, State

# Not of the sequence: what is made later still begins with the first id.
USER_ROLE_ID = "user"


class Roles(Registry):
    """Sets of permissions. Nothing about a role is unique but the id: creating twice makes two."""

    kind: ClassVar[str] = "x:Role"
    table: ClassVar[str] = "roles"
    filters: ClassVar[frozenset[str]] = frozenset({"description", "memberTenantId"})
    fields: ClassVar[Fields] = {
        "createdAt": READ_ONLY,
        "description": NAME,
        "disabledPermissions": SET,
        "enabledPermissions": SET,
        "memberTenantId": TEXT,
        "roleIds": SET,
    }

    def __init__(self, state: State, account_id: str, accounts: Accounts) -> None:
        super().__init__(state, account_id)
        self._accounts = accounts
        self._seed()

    def _seed(self) -> None:
        """Put in the role that ordinary accounts have by default, as every installation has it."""
        if self._objects.get(USER_ROLE_ID) is None:
            everyday = dict.fromkeys(("authenticate", "emailReceive", "emailSend"), True)
            document = {"description": "User", "enabledPermissions": everyday, "disabledPermissions": {}, "roleIds": {}}
            stamp = "2026-01-01T00:00:00Z"
            self._objects.put(
                USER_ROLE_ID, {"id": USER_ROLE_ID, "createdAt": stamp, "memberTenantId": None, **document}
            )

    def prepare(self, document: Document, _stored: Document | None) -> Document:
        """Check the permissions and the roles inherited from."""
        permissions.check("enabledPermissions", document["enabledPermissions"], document["disabledPermissions"])
        for role_id in document["roleIds"]:
            if role_id not in self._objects:
                parent = {"object": self.kind, "id": role_id}
                raise SetError("invalidForeignKey", properties=["roleIds"], objectId=parent)
        return document

    def links(self, object_id: str) -> Iterator[Document]:
        """Yield the accounts that have the role and the roles that inherit from it."""
        for account in self._accounts.referring():
            if object_id in account["roles"].get("roleIds", {}):
                yield {"object": "x:Account", "id": account["id"]}
        for role in self._objects:
            if object_id in role["roleIds"]:
                yield {"object": self.kind, "id": role["id"]}

    def matches(self, document: Document, name: str, value: Any) -> bool:
        """Match a description by its words: a search, not an equality."""
        if name == "description":
            return words(value) <= words(document["description"])
        return bool(document[name] == value)
