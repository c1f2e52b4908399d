"""Project spaces: what is stored, which rules hold, and how a drive looks in an answer.

Members are part of the space's document, so that each request writes one document: a stand-in killed at any moment
is found again either before or after the request, never in between.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams

from sandbox.ocis.directory import Directory
from sandbox.ocis.errors import GraphError, bad_request, not_found
from sandbox.ocis.query import equality, ordered
from sandbox.ocis.roles import MANAGER, ROLES
from sandbox.state import Document, State

STORAGE_ID = "6f5b7d36-9f0c-4f0e-8a3b-5d1f0e6c2a11"
SHARES_ID = "a0ca6a90-a365-4782-871e-d44447bbc668"
DEFAULT_QUOTA = 1_000_000_000
UNLIMITED = 2**63 - 1
LONGEST_NAME = 255
FORBIDDEN_IN_NAMES = re.compile(r'[/\\.:?*"><|]')
DRIVE_PROPERTIES = frozenset(
    (
        *("id", "name", "description", "driveType", "driveAlias", "quota", "owner", "root", "items", "special"),
        *(
            "createdBy",
            "createdDateTime",
            "lastModifiedBy",
            "lastModifiedDateTime",
            "parentReference",
            "eTag",
            "webUrl",
        ),
    )
)
QUOTA_PROPERTIES = frozenset(("deleted", "remaining", "state", "total", "used"))


class Spaces:
    """All spaces of the installation."""

    def __init__(self, state: State, directory: Directory, public_url: str) -> None:
        self._spaces = state.table("spaces")
        self._directory = directory
        self._base = public_url.rstrip("/")
        # Every account has a personal space: a list that was meant to be filtered and was not contains it.
        if not any(space["driveType"] == "personal" for space in self._spaces):
            machine = directory.machine
            self._new("personal", machine["displayName"], f"personal/{machine['name']}", quota=0)

    def objects(self) -> list[Document]:
        """Return the stored project spaces."""
        return [space for space in self._spaces if space["driveType"] == "project"]

    def list_drives(self, params: QueryParams, *, unified_roles: bool = False) -> list[Document]:
        """Return drives: only `driveType eq` and `id eq` narrow the list, and there are no pages."""
        found = list(self._spaces)
        with_shares = True
        match equality(params):
            case ("driveType", kind):
                found = [space for space in found if space["driveType"] == kind]
                with_shares = kind == "virtual"
            case ("id", key):
                found = [space for space in found if key in (space["id"], _full_id(space))]
                with_shares = False
        fields = {"name": "name", "lastModifiedDateTime": "modified"}
        shown = [self.show(space, unified_roles=unified_roles) for space in ordered(found, params, fields)]
        return [*shown, self._shares()] if with_shares else shown

    def find(self, key: str) -> Document | None:
        """Return a space by its drive id or its bare UUID, disabled or not."""
        return self._spaces.get(key.removeprefix(f"{STORAGE_ID}$"))

    def get(self, key: str, message: str = "drive not found") -> Document:
        """Return a space.

        Raises:
            GraphError: 404 if there is none.
        """
        space = self.find(key)
        if space is None:
            raise not_found(message)
        return space

    def create(self, body: Document) -> Document:
        """Create a project space. Nothing about it is unique: the same request again gives another space."""
        problem = bad_request("invalid body schema definition")
        if _unknown_property(body) is not None or not _well_typed(body) or "name" not in body:
            raise problem
        if body.get("driveType") not in (None, "", "project"):
            raise bad_request("drives of this type cannot be created via this api")
        name = body["name"].strip()
        if text := _name_problem(name):
            raise bad_request(f"invalid spacename: {text}")
        total = body.get("quota", {}).get("total", -1)
        return self._new(
            "project",
            name,
            body.get("driveAlias") or f"project/{name.replace(' ', '-').lower()}",
            quota=total if total >= 0 else DEFAULT_QUOTA,
            description=body.get("description", ""),
        )

    def change(self, space: Document, body: Document, *, restore: bool) -> Document:
        """Set the given properties, of a disabled space too; with `restore` enable it as well."""
        if unknown := _unknown_property(body):
            raise bad_request(f'invalid request body: error: json: unknown field "{unknown}"')
        if not _well_typed(body):
            raise bad_request("invalid request body: error: json: cannot unmarshal value")
        changed: Document = {name: body[name] for name in ("name", "description", "driveAlias") if name in body}
        if "name" in changed:
            changed["name"] = changed["name"].strip()
            if text := _name_problem(changed["name"]):
                raise GraphError(400, "generalException", text)
        if "total" in body.get("quota", {}):
            changed["quota"] = body["quota"]["total"]
        return self.put({**space, **changed, **({"disabled": False} if restore else {}), "modified": _now()})

    def disable(self, space: Document) -> None:
        """Take a space out of use; its content and members stay."""
        _require_project(space)
        self.put({**space, "disabled": True})

    def purge(self, space: Document) -> None:
        """Delete a disabled space with its content, without any grace time."""
        _require_project(space)
        if not space["disabled"]:
            raise bad_request("error: bad request: can't purge enabled space")
        self._spaces.delete(space["id"])

    def put(self, space: Document) -> Document:
        """Store a changed space."""
        return self._spaces.put(space["id"], space)

    def show(self, space: Document, *, unified_roles: bool = False) -> Document:
        """Return a space as answers carry it: v1.0 names roles by legacy words, v1beta1 by their ids."""
        drive_id = _full_id(space)
        root: Document = {
            "eTag": '"' + hashlib.md5(f"{drive_id}{space['modified']}".encode()).hexdigest() + '"',
            "id": drive_id,
            "webDavUrl": f"{self._base}/dav/spaces/{drive_id}",
            "permissions": [self._show_member(member, unified_roles=unified_roles) for member in space["members"]],
        }
        if space["disabled"]:
            root["deleted"] = {"state": "trashed"}
        return {
            **({"description": space["description"]} if space["description"] else {}),
            "driveAlias": space["driveAlias"],
            "driveType": space["driveType"],
            "id": drive_id,
            "lastModifiedDateTime": space["modified"],
            "name": space["name"],
            "owner": {"user": {"displayName": "", "id": space["id"]}},
            "quota": _show_quota(space),
            "root": root,
            "webUrl": f"{self._base}/f/{drive_id}",
        }

    def _show_member(self, member: Document, *, unified_roles: bool) -> Document:
        identity = {member["kind"]: self._directory.identity(member["kind"], member["id"])}
        role = member["role"] if unified_roles else ROLES[member["role"]].legacy
        return {"grantedToIdentities": [identity], "grantedToV2": identity, "roles": [role]}

    def _shares(self) -> Document:
        drive_id = f"{SHARES_ID}${SHARES_ID}"
        root = {"eTag": "DECAFC00FEE", "id": drive_id, "webDavUrl": f"{self._base}/dav/spaces/{drive_id}"}
        return {
            "driveAlias": "virtual/shares",
            "driveType": "virtual",
            "id": drive_id,
            "name": "Shares",
            "root": root,
            "webUrl": f"{self._base}/f/{drive_id}",
        }

    def _new(self, kind: str, name: str, alias: str, *, quota: int, description: str = "") -> Document:
        creator = {"kind": "user", "id": self._directory.machine["id"], "role": MANAGER, "expires": None}
        return self.put(
            {
                "id": str(uuid.uuid4()),
                "driveType": kind,
                "name": name,
                "driveAlias": alias,
                "description": description,
                "quota": quota,
                "used": 0,
                "disabled": False,
                "modified": _now(),
                "members": [creator],
            }
        )


def _full_id(space: Document) -> str:
    return f"{STORAGE_ID}${space['id']}"


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _require_project(space: Document) -> None:
    if space["driveType"] != "project":
        raise GraphError(405, "notAllowed", "drives of this type cannot be deleted via this api")


def _unknown_property(body: Document) -> str | None:
    quota = body.get("quota")
    unknown = [name for name in body if name not in DRIVE_PROPERTIES]
    if isinstance(quota, dict):
        unknown += [name for name in quota if name not in QUOTA_PROPERTIES]
    return unknown[0] if unknown else None


def _well_typed(body: Document) -> bool:
    texts = all(isinstance(body.get(name, ""), str) for name in ("name", "description", "driveAlias", "driveType"))
    quota: Any = body.get("quota", {})
    return texts and isinstance(quota, dict) and type(quota.get("total", 0)) is int


def _name_problem(name: str) -> str | None:
    if not name:
        return "spacename must not be empty"
    if len(name.encode()) > LONGEST_NAME:
        return "spacename must be smaller than 255"
    if FORBIDDEN_IN_NAMES.search(name):
        return 'spacenames must not contain [/ \\ . : ? * " > < |]'
    return None


def _show_quota(space: Document) -> Document:
    # A negative quota is stored as it was sent, and counts as none.
    total = max(space["quota"], 0)
    if space["disabled"]:
        return {"total": total}
    used = space["used"]
    share = used / total if total else 0
    states = (("normal", 0.75), ("nearing", 0.90), ("critical", 0.99))
    return {
        "remaining": max(total - used, 0) if total else UNLIMITED,
        "state": next((state for state, limit in states if share <= limit), "exceeded"),
        "total": total,
        "used": used,
    }
