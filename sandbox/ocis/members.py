"""Members of a space. Only members can see or change them: to anybody else, an Admin too, there is no such space."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from sandbox.ocis.directory import Directory
from sandbox.ocis.errors import GraphError, bad_request, not_found
from sandbox.ocis.roles import MANAGER, ROLES, show_roles
from sandbox.ocis.spaces import Spaces
from sandbox.state import Document

ACTIONS = ("children/create", "children/read", "content/read", "path/read", "permissions/create", "permissions/read")
DRIVE_ID = re.compile(r"([0-9a-f-]{36}\$)?[0-9a-f-]{36}")
INVITE_PROPERTIES = frozenset({"recipients", "roles", "@libre.graph.permissions.actions", "expirationDateTime"})
RECIPIENT_PROPERTIES = frozenset({"objectId", "@libre.graph.recipient.type"})
CHANGE_PROPERTIES = frozenset({"roles", "expirationDateTime", "id", "@libre.graph.permissions.actions"})


class Members:
    """The memberships of all spaces, as the machine account may see and change them."""

    def __init__(self, spaces: Spaces, directory: Directory) -> None:
        self._spaces = spaces
        self._directory = directory

    def objects(self) -> list[Document]:
        """Return all memberships of project spaces, each with the permission id and the space's id."""
        return [
            {"spaceId": space["id"], "permissionId": _permission_id(member), **member}
            for space in self._spaces.objects()
            for member in space["members"]
        ]

    def list_members(self, drive_id: str) -> Document:
        """Return the members of a space, with the roles that could be given."""
        space = self._visible(drive_id)
        return {
            "@libre.graph.permissions.actions.allowedValues": [f"libre.graph/driveItem/{name}" for name in ACTIONS],
            "@libre.graph.permissions.roles.allowedValues": show_roles(),
            "value": [self._show(member) for member in space["members"]],
        }

    def invite(self, drive_id: str, body: Document) -> Document:
        """Make a group or user a member.

        Raises:
            GraphError: 409 if it is one already, with whatever role.
        """
        if not DRIVE_ID.fullmatch(drive_id):
            raise GraphError(422, "invalidRequest", "invalid driveID")
        _refuse_unknown(body, INVITE_PROPERTIES)
        recipient = _single_recipient(body)
        kind = recipient["@libre.graph.recipient.type"]
        role = _single_role(body, "DriveItemInvite")
        member = {"kind": kind, "id": recipient.get("objectId", ""), "role": role, "expires": _expiry(body)}
        space = self._managed(drive_id)
        if not self._directory.exists(kind, member["id"]):
            raise bad_request("itemNotFound: not found")
        identity = self._directory.identity(kind, member["id"])
        if _find(space, _permission_id(member)) is not None:
            raise GraphError(409, "nameAlreadyExists", f"add grant: error: already exists: {identity['displayName']}")
        self._spaces.put({**space, "members": [*space["members"], member]})
        machine = self._directory.identity("user", self._directory.machine["id"])
        return {"value": [{**self._show(member), "invitation": {"invitedBy": {"user": machine}}}]}

    def change(self, drive_id: str, permission_id: str, body: Document) -> Document:
        """Give a member another role."""
        _refuse_unknown(body, CHANGE_PROPERTIES)
        role = _single_role(body, "Permission")
        space = self._managed(drive_id)
        member = _find(space, permission_id)
        if member is None:
            raise not_found(f'error: not found: no shares found by id:opaque_id:"{permission_id}"')
        if role != MANAGER:
            _keep_a_manager(space, member)
        expires = _expiry(body) if "expirationDateTime" in body else member["expires"]
        changed = {**member, "role": role, "expires": expires}
        self._spaces.put({**space, "members": [changed if other is member else other for other in space["members"]]})
        return self._show(changed)

    def remove(self, drive_id: str, permission_id: str) -> None:
        """Remove a member.

        Raises:
            GraphError: 500 if it is none, which is how a repeated removal ends.
        """
        space = self._managed(drive_id)
        member = _find(space, permission_id)
        if member is None:
            text = "rpc error: code = Unknown desc = gateway: error getting grant to remove from storage"
            raise GraphError(500, "generalException", text)
        _keep_a_manager(space, member)
        self._spaces.put({**space, "members": [other for other in space["members"] if other is not member]})

    def _visible(self, drive_id: str) -> Document:
        space = self._spaces.find(drive_id)
        if space is None or space["disabled"] or self._own_membership(space) is None:
            raise not_found(f"stat: error: not found: {drive_id}")
        return space

    def _managed(self, drive_id: str) -> Document:
        space = self._visible(drive_id)
        own = self._own_membership(space)
        if own is None or own["role"] != MANAGER:
            raise GraphError(403, "accessDenied", "no permission to manage members")
        return space

    def _own_membership(self, space: Document) -> Document | None:
        return _find(space, f"u:{self._directory.machine['id']}")

    def _show(self, member: Document) -> Document:
        return {
            "grantedToV2": {member["kind"]: self._directory.identity(member["kind"], member["id"])},
            "id": _permission_id(member),
            "roles": [member["role"]],
            **({"expirationDateTime": member["expires"]} if member["expires"] else {}),
        }


def _permission_id(member: Document) -> str:
    return f"{member['kind'][0]}:{member['id']}"


def _find(space: Document, permission_id: str) -> Document | None:
    return next((member for member in space["members"] if _permission_id(member) == permission_id), None)


def _keep_a_manager(space: Document, leaving: Document) -> None:
    if not any(member["role"] == MANAGER for member in space["members"] if member is not leaving):
        raise GraphError(403, "accessDenied", "can't remove the last manager")


def _refuse_unknown(body: Document, known: frozenset[str]) -> None:
    if unknown := next((name for name in body if name not in known), None):
        raise bad_request(f'invalid request body: error: json: unknown field "{unknown}"')


def _single_recipient(body: Document) -> Document:
    recipients: Any = body.get("recipients", [])
    if not isinstance(recipients, list) or not all(isinstance(recipient, dict) for recipient in recipients):
        raise bad_request("invalid request body: recipients")
    if len(recipients) != 1:
        raise bad_request(_failed("DriveItemInvite", "Recipients", "len"))
    recipient: Document = recipients[0]
    _refuse_unknown(recipient, RECIPIENT_PROPERTIES)
    if recipient.get("@libre.graph.recipient.type") not in ("user", "group"):
        raise bad_request(_failed("DriveItemInvite", "Recipients[0].LibreGraphRecipientType", "oneof"))
    return recipient


def _single_role(body: Document, kind: str) -> str:
    roles: Any = body.get("roles", [])
    if not isinstance(roles, list) or len(roles) > 1:
        raise bad_request(_failed(kind, "Roles", "max"))
    if not roles:
        raise bad_request(_failed(kind, "Roles", "one_or_another"))
    if not isinstance(roles[0], str) or roles[0] not in ROLES:
        raise bad_request(_failed(kind, "Roles", "available_role"))
    return roles[0]


def _expiry(body: Document) -> str | None:
    value = body.get("expirationDateTime")
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise bad_request("invalid request body: expirationDateTime") from None
    if moment.tzinfo is None or moment <= datetime.now(UTC):
        raise bad_request("expiration date must be in the future")
    return str(value)


def _failed(kind: str, field: str, tag: str) -> str:
    return f"Key: '{kind}.{field}' Error:Field validation for '{field.rpartition('.')[2]}' failed on the '{tag}' tag"
