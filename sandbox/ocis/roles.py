"""The three roles that a member of a space can have."""

from __future__ import annotations

from typing import NamedTuple

from sandbox.state import Document

MANAGER = "312c0871-5ef7-4b3a-85b6-0e4074c64049"


class Role(NamedTuple):
    """A role under its two names: display names repeat between kinds of role, so only the id identifies it."""

    legacy: str
    display_name: str
    description: str


ROLES = {
    "a8d5fe5e-96e3-418d-825b-534dbdf22b99": Role("viewer", "Can view", "View and download."),
    "58c63c02-1d89-4572-916a-870abc5a1b7d": Role("editor", "Can edit", "View, download, upload, edit, add and delete."),
    MANAGER: Role("manager", "Can manage", "View, download, upload, edit, add, delete and manage members."),
}


def show_roles() -> list[Document]:
    """Return the definitions of all roles, lightest first."""
    return [
        {"id": key, "displayName": role.display_name, "description": role.description, "@libre.graph.weight": weight}
        for weight, (key, role) in enumerate(ROLES.items(), start=1)
    ]
