"""Groups and users as documents.

A membership is stored only on the user, so that a request writes one document (a group's `users` list apart): a
stand-in killed at any moment is found again either before or after the request, never in between.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams

from sandbox.authentik.errors import detail, invalid
from sandbox.authentik.fields import (
    Fields,
    choice_problem,
    flag_problem,
    keys_problem,
    object_problem,
    text_problem,
)
from sandbox.authentik.lists import Filters, ordered, page
from sandbox.state import Document, State

ADMIN_GROUP = "authentik Admins"
ADMIN_USERNAME = "akadmin"
MACHINE_USERNAME = "dezky-control-plane"
USER_TYPES = ("internal", "external", "service_account", "internal_service_account")
GROUP_ORDER = ("name", "pk", "num_pk", "is_superuser")
USER_ORDER = ("username", "pk", "uuid", "name", "email", "is_active", "type", "path", "date_joined", "last_updated")
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
AVATAR = "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="


class Directory:
    """All groups and users of the installation, with what a fresh one contains."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._groups = state.table("groups")
        self._users = state.table("users")
        installation = state.table("installation")
        self._secret: str = (installation.get("") or installation.put("", {"secret": secrets.token_hex(16)}))["secret"]
        self._seed()

    def _seed(self) -> None:
        # Foreign objects are part of every installation: code that takes the first result of an unfiltered list
        # shall get one of them.
        admins = self._group_named(ADMIN_GROUP) or self._new_group({"name": ADMIN_GROUP, "is_superuser": True})
        for username, kind in ((ADMIN_USERNAME, "internal"), (MACHINE_USERNAME, "service_account")):
            if self.user_named(username) is None:
                email = f"{username}@localhost.localdomain"
                fields = {"username": username, "name": username, "email": email, "type": kind}
                self._new_user({**fields, "groups": [admins["pk"]]})

    def objects(self) -> Document:
        """Return the stored documents, groups with the keys of their members."""
        return {
            "groups": [{**group, "users": [user["pk"] for user in self.members(group)]} for group in self._groups],
            "users": [{**user, "groups": [group["pk"] for group in self.groups_of(user)]} for user in self._users],
        }

    def members(self, group: Document) -> list[Document]:
        """Return the direct members of a group."""
        return [user for user in self._users if group["pk"] in user["groups"]]

    def groups_of(self, user: Document) -> list[Document]:
        """Return the groups that a user is a direct member of and that still exist."""
        return [group for key in user["groups"] if (group := self._groups.get(key)) is not None]

    # Groups

    def list_groups(self, params: QueryParams) -> Document:
        """Return one page of groups."""
        filters = Filters(params, self._groups)
        filters.exact("name")
        filters.flag("is_superuser", lambda group: bool(group["is_superuser"]))
        filters.attributes()
        filters.any_of(
            "members_by_pk",
            (str(user["pk"]) for user in self._users),
            lambda group: [user["pk"] for user in self.members(group)],
        )
        filters.any_of(
            "members_by_username",
            (user["username"] for user in self._users),
            lambda group: [user["username"] for user in self.members(group)],
        )
        filters.search("name")
        return page(ordered(filters.found, params, GROUP_ORDER), params, lambda group: self.show_group(group, params))

    def group(self, key: str) -> Document:
        """Return the group of a path.

        Raises:
            ApiError: 404, in other words if the key is no UUID.
        """
        try:
            found = self._groups.get(str(uuid.UUID(key)))
        except ValueError:
            raise detail(404, "Not found.") from None
        if found is None:
            raise detail(404, "No Group matches the given query.")
        return found

    def create_group(self, body: Document) -> Document:
        """Create a group; its name is unique."""
        return self._new_group(self._group_fields(body, None, partial=False))

    def change_group(self, group: Document, body: Document, *, partial: bool) -> Document:
        """Set the given fields, `attributes` and `users` as a whole; without `partial` absent lists become empty."""
        fields = self._group_fields(body, group, partial=partial)
        if not partial:
            fields = {"parents": [], "users": [], **fields}
        self._set_members(group, fields.pop("users", None))
        return self._groups.put(group["pk"], {**group, **fields})

    def delete_group(self, group: Document) -> None:
        """Delete a group; its members stay."""
        self._groups.delete(group["pk"])

    def set_membership(self, group: Document, body: Document, *, member: bool) -> None:
        """Make the user whose `pk` the body names a member or not; both are idempotent."""
        fields = Fields(body, partial=False)
        fields.check("pk", lambda value: None if _is_integer(value) else "A valid integer is required.", required=True)
        user = self._users.get(str(fields.done()["pk"]))
        if user is None:
            raise detail(404, "Not found.")
        self._join(user, group, member=member)

    def show_group(self, group: Document, params: QueryParams) -> Document:
        """Return a group as answers carry it."""

        def asked(name: str, *, default: bool = False) -> bool:
            return params.get(name, str(default)).lower() == "true"

        members = self.members(group)
        children = [child for child in self._groups if group["pk"] in child["parents"]]
        parents = [parent for key in group["parents"] if (parent := self._groups.get(key)) is not None]
        return {
            "pk": group["pk"],
            "num_pk": group["num_pk"],
            "name": group["name"],
            "is_superuser": group["is_superuser"],
            "parents": [parent["pk"] for parent in parents],
            "parents_obj": [_related_group(parent) for parent in parents] if asked("include_parents") else None,
            "users": [user["pk"] for user in members],
            "users_obj": [_partial_user(user) for user in members] if asked("include_users", default=True) else None,
            "attributes": _stored_order(group["attributes"]),
            "roles": [],
            "roles_obj": [],
            "inherited_roles_obj": [] if asked("include_inherited_roles") else None,
            "children": [child["pk"] for child in children],
            "children_obj": [_related_group(child) for child in children] if asked("include_children") else None,
        }

    def _group_fields(self, body: Document, group: Document | None, *, partial: bool) -> Document:
        fields = Fields(body, partial=partial)
        fields.check("name", text_problem(), required=True)
        fields.check("is_superuser", flag_problem)
        fields.check("parents", keys_problem(self._has_group))
        fields.check("users", keys_problem(self._has_user))
        fields.check("attributes", object_problem)
        fields.check("roles", keys_problem(lambda _key: False))
        holder = self._group_named(fields.valid.get("name"))
        if holder is not None and holder is not group:
            raise invalid("name", "Group with this name already exists.")
        return {name: value for name, value in fields.done().items() if name != "roles"}

    def _new_group(self, fields: Document) -> Document:
        key = uuid.uuid4()
        members = fields.pop("users", None)
        blank = {"is_superuser": False, "parents": [], "attributes": {}}
        group = self._groups.put(str(key), {"pk": str(key), "num_pk": key.int % 100_000, **blank, **fields})
        self._set_members(group, members)
        return group

    def _set_members(self, group: Document, keys: list[int] | None) -> None:
        if keys is not None:
            for user in self._users:
                self._join(user, group, member=user["pk"] in keys)

    def _join(self, user: Document, group: Document, *, member: bool) -> None:
        if member != (group["pk"] in user["groups"]):
            others = [key for key in user["groups"] if key != group["pk"]]
            self._users.put(str(user["pk"]), {**user, "groups": [*others, group["pk"]] if member else others})

    def _group_named(self, name: str | None) -> Document | None:
        return next((group for group in self._groups if group["name"] == name), None)

    def _has_group(self, key: Any) -> bool:
        return isinstance(key, str) and key in self._groups

    # Users

    def list_users(self, params: QueryParams) -> Document:
        """Return one page of users."""
        filters = Filters(params, self._users)
        filters.exact("username", "email", "name", "path")
        filters.identifier("uuid")
        filters.flag("is_active", lambda user: bool(user["is_active"]))
        filters.flag("is_superuser", self._is_superuser)
        filters.any_of("type", USER_TYPES, lambda user: [user["type"]])
        filters.any_of("groups_by_pk", (group["pk"] for group in self._groups), lambda user: user["groups"])
        filters.any_of(
            "groups_by_name",
            (group["name"] for group in self._groups),
            lambda user: [group["name"] for group in self.groups_of(user)],
        )
        filters.attributes()
        filters.moments("date_joined", "last_updated")
        if subtree := filters.value("path_startswith"):
            filters.keep(lambda user: f"{user['path']}/".startswith(f"{subtree}/"))
        filters.search("username", "name", "email", "uuid")
        return page(ordered(filters.found, params, USER_ORDER), params, lambda user: self.show_user(user, params))

    def user(self, key: str) -> Document:
        """Return the user of a path.

        Raises:
            ApiError: 404, in other words if the key is no number.
        """
        if not (key.isascii() and key.isdigit()):
            raise detail(404, "Not found.")
        found = self._users.get(str(int(key)))
        if found is None:
            raise detail(404, "No User matches the given query.")
        return found

    def user_named(self, username: str | None) -> Document | None:
        """Return the user with exactly this name, or None."""
        return next((user for user in self._users if user["username"] == username), None)

    def create_user(self, body: Document) -> Document:
        """Create a user; the name is unique by exact spelling, the e-mail is not."""
        return self._new_user(self._user_fields(body, None, partial=False))

    def change_user(self, user: Document, body: Document, *, partial: bool) -> Document:
        """Set the given fields, `attributes` and `groups` as a whole; without `partial` absent lists become empty."""
        fields = self._user_fields(body, user, partial=partial)
        if not partial:
            fields = {"groups": [], **fields}
        return self._users.put(str(user["pk"]), {**user, **fields, "last_updated": _now()})

    def delete_user(self, user: Document) -> None:
        """Delete a user, and with it every membership."""
        self._users.delete(str(user["pk"]))

    def show_user(self, user: Document, params: QueryParams) -> Document:
        """Return a user as answers carry it."""
        groups = self.groups_of(user)
        with_groups = params.get("include_groups", "true").lower() != "false"
        with_roles = params.get("include_roles", "true").lower() != "false"
        return {
            **user,
            "is_superuser": self._is_superuser(user),
            "groups": [group["pk"] for group in groups],
            "groups_obj": [_partial_group(group) for group in groups] if with_groups else None,
            "roles": [],
            "roles_obj": [] if with_roles else None,
            "avatar": AVATAR,
            "attributes": _stored_order(user["attributes"]),
        }

    def show_self(self, user: Document) -> Document:
        """Return the owner of the session, alone and in the list of its signed-in users."""
        shown = {
            **{name: user[name] for name in ("pk", "username", "name", "is_active", "email", "uid", "type")},
            "is_superuser": self._is_superuser(user),
            "is_current": True,
            "groups": [{"name": group["name"], "pk": group["pk"]} for group in self.groups_of(user)],
            "roles": [],
            "avatar": AVATAR,
            "settings": {},
            "system_permissions": [],
        }
        return {"user": shown, "users": [shown]}

    def _user_fields(self, body: Document, user: Document | None, *, partial: bool) -> Document:
        fields = Fields(body, partial=partial)
        fields.check("username", text_problem(longest=150), required=True)
        fields.check("name", text_problem(blank=True), required=True)
        fields.check("email", _email_problem)
        fields.check("is_active", flag_problem)
        fields.check("type", _type_problem)
        fields.check("path", _path_problem)
        fields.check("groups", keys_problem(self._has_group))
        fields.check("attributes", object_problem)
        fields.check("roles", keys_problem(lambda _key: False))
        holder = self.user_named(fields.valid.get("username"))
        if holder is not None and holder is not user:
            raise invalid("username", "This field must be unique.")
        return {name: value for name, value in fields.done().items() if name != "roles"}

    def _new_user(self, fields: Document) -> Document:
        number = self._state.next_number("users")
        now = _now()
        user = {
            "pk": number,
            "uuid": str(uuid.uuid4()),
            "uid": hashlib.sha256(f"{number}-{self._secret}".encode()).hexdigest(),
            "email": "",
            "is_active": True,
            "type": "internal",
            "path": "users",
            "groups": [],
            "attributes": {},
            "last_login": None,
            "date_joined": now,
            "last_updated": now,
            "password_change_date": now,
        }
        return self._users.put(str(number), {**user, **fields})

    def _is_superuser(self, user: Document) -> bool:
        return any(group["is_superuser"] for group in self.groups_of(user))

    def _has_user(self, key: Any) -> bool:
        return _is_integer(key) and str(key) in self._users


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _email_problem(value: Any) -> str | None:
    text = text_problem(blank=True, longest=254)(value)
    return text or (None if value == "" or EMAIL.fullmatch(value) else "Enter a valid email address.")


def _type_problem(value: Any) -> str | None:
    if value == "internal_service_account":
        return "Setting a user to internal service account is not allowed."
    return choice_problem(USER_TYPES)(value)


def _path_problem(value: Any) -> str | None:
    text = text_problem()(value)
    return text or (None if value == value.strip("/") else "No leading or trailing slashes allowed.")


def _stored_order(attributes: Document) -> Document:
    """Return the attributes as jsonb gives them back: shorter keys first, then by spelling."""
    keys = sorted(attributes, key=lambda key: (len(key.encode()), key.encode()))
    return {
        key: _stored_order(attributes[key]) if isinstance(attributes[key], dict) else attributes[key] for key in keys
    }


def _partial_group(group: Document) -> Document:
    return {name: group[name] for name in ("pk", "num_pk", "name", "is_superuser", "attributes")}


def _related_group(group: Document) -> Document:
    shown = {name: group[name] for name in ("pk", "name", "is_superuser", "attributes")}
    return {**shown, "group_uuid": group["pk"]}


def _partial_user(user: Document) -> Document:
    names = ("pk", "username", "name", "is_active", "last_login", "email", "attributes", "uid")
    return {name: user[name] for name in names}
