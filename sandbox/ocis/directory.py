"""Groups, and the machine account that calls. People are not modelled: they appear at their first login only."""

from __future__ import annotations

import uuid

from starlette.datastructures import QueryParams

from sandbox.ocis.errors import GraphError, bad_request, not_found
from sandbox.ocis.query import ordered
from sandbox.state import Document, State

MACHINE_NAME = "dezky-control-plane"
GROUP_PROPERTIES = frozenset({"id", "displayName", "description", "groupTypes", "members", "members@odata.bind"})


class Directory:
    """All principals that can be a member of a space."""

    def __init__(self, state: State) -> None:
        self._groups = state.table("groups")
        self._users = state.table("users")
        self.machine = next(iter(self._users)) if len(self._users) else self._new_machine()

    def _new_machine(self) -> Document:
        key = str(uuid.uuid4())
        return self._users.put(key, {"id": key, "displayName": MACHINE_NAME, "name": MACHINE_NAME})

    def groups(self) -> list[Document]:
        """Return the stored groups."""
        return list(self._groups)

    def identity(self, kind: str, key: str) -> Document:
        """Return a principal as permissions show it; a deleted one keeps its memberships but loses its name."""
        principal = (self._groups if kind == "group" else self._users).get(key)
        name = principal["displayName"] if principal else ""
        return {"@libre.graph.userType": "Member", **_named(key, name)} if kind == "user" else _named(key, name)

    def exists(self, kind: str, key: str) -> bool:
        """Say whether a principal of this kind has this id; names do not count."""
        return key in (self._groups if kind == "group" else self._users)

    def list_groups(self, params: QueryParams) -> list[Document]:
        """Return all groups, or those that `$search` finds: `$filter` is ignored."""
        wanted = params.get("$search", "").strip('" ').lower()
        found = [group for group in self._groups if wanted in group["displayName"].lower()]
        return [show_group(group, params) for group in ordered(found, params, {"displayName": "displayName"})]

    def group(self, key: str) -> Document:
        """Return a group by id or name.

        Raises:
            GraphError: 404 if there is none.
        """
        group = self._groups.get(key) or self._group_named(key)
        if group is None:
            raise not_found("not found")
        return group

    def create_group(self, body: Document) -> Document:
        """Create a group; its name is unique without regard to case."""
        name = _group_name(body)
        if "id" in body:
            raise bad_request("group id is a read-only attribute")
        if name is None:
            raise bad_request("Missing Required Attribute")
        if self._group_named(name) is not None:
            raise GraphError(409, "nameAlreadyExists", "group already exists")
        key = str(uuid.uuid4())
        return self._groups.put(key, {"id": key, "displayName": name})

    def rename_group(self, group: Document, body: Document) -> None:
        """Give a group another name."""
        name = _group_name(body)
        if name is None:
            return
        if self._group_named(name) not in (None, group):
            raise GraphError(409, "nameAlreadyExists", "Group name already in use")
        self._groups.put(group["id"], {**group, "displayName": name})

    def delete_group(self, group: Document) -> None:
        """Delete a group; what it was a member of still lists it."""
        self._groups.delete(group["id"])

    def _group_named(self, name: str) -> Document | None:
        folded = name.casefold()
        return next((group for group in self._groups if group["displayName"].casefold() == folded), None)


def show_group(group: Document, params: QueryParams) -> Document:
    """Return a group as answers carry it."""
    members: Document = {"members": []} if "members" in params.get("$expand", "") else {}
    return {"displayName": group["displayName"], "groupTypes": [], "id": group["id"], **members}


def _group_name(body: Document) -> str | None:
    if unknown := next((name for name in body if name not in GROUP_PROPERTIES), None):
        raise bad_request(f'invalid request body: error: json: unknown field "{unknown}"')
    name = body.get("displayName")
    if name is not None and not isinstance(name, str):
        raise bad_request("invalid request body: displayName is no string")
    return name or None


def _named(key: str, name: str) -> Document:
    return {"displayName": name, "id": key}
