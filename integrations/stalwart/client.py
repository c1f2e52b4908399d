"""Client of the Stalwart management objects over JMAP, 0.16.15 and 1.x.

A failure can come in three layers, and a 200 proves nothing: the HTTP status, the method's `error` reply, and the
object's entry in `notCreated` or `notDestroyed`. All three are mapped here, in `_request_error`, `_method_error` and
`_object_error`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, TypeVar

import dns.exception
import dns.name
import dns.rdtypes.ANY.TXT
import dns.zonefile
import httpx
from pydantic import ValidationError

from domain.errors import VendorAuthFailed, VendorError, VendorRateLimited, VendorRejected, VendorUnavailable
from integrations.http import call, decode, json_object, no_answer, retry_after, safe_text
from integrations.model import VendorModel
from integrations.stalwart.models import (
    DkimKey,
    DnsRecord,
    Domain,
    Link,
    Mailbox,
    MailboxSpec,
    Role,
    RoleSpec,
    ServerInfo,
)

VENDOR = "stalwart"

_USING = ("urn:ietf:params:jmap:core", "urn:stalwart:jmap")
_CALL_ID = "c0"
_NEW = "new"
# Source: at most 500 ids per get; a query may return more.
_PAGE_SIZE = 500
_USER_ROLE = "User"
# Source: any store error, also of the loser of a racing create.
_SERVER_FAILED = frozenset({"serverUnavailable", "serverFail", "serverPartialFail"})

_Model = TypeVar("_Model", bound=VendorModel)


class _Reply(VendorModel):
    """The answer to a request of one call."""

    methodResponses: tuple[tuple[str, dict[str, Any], str]]  # noqa: N815 - the protocol's name


class StalwartClient:
    """Domains, roles and mailboxes of one Stalwart server.

    Every method raises `VendorAuthFailed` (401: stop at once, the server bans an address that keeps trying),
    `VendorRejected` (`vendor_forbidden`, `already_exists`, `generation_mismatch`, `stalwart_<type>`),
    `VendorRateLimited`, `VendorUnavailable`, and, if it writes, `OutcomeUnknown`.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        """Take a client whose base URL is the server's root; the `apiUrl` that the server announces is not used."""
        self._http = http

    async def check_generation(self) -> ServerInfo:
        """Return the server's edition and our permissions there.

        Raises:
            VendorRejected: `generation_mismatch` if it is of a generation without this interface (0.15 or older).
        """
        response = await call(VENDOR, self._http, "GET", "/api/account", write=False)
        if not response.is_success:
            raise _request_error(response, write=False)
        return decode(VENDOR, ServerInfo, response, write=False)

    async def find_domain(self, name: str) -> Domain | None:
        """Return the domain of exactly this name, given as the server stores it: lower case, A-labels."""
        rows = await self._list("Domain", {"name": name}, Domain, ("id", "name", "description"))
        return next((row for row in rows if row.name == name), None)

    async def create_domain(self, name: str, description: str) -> str:
        """Create a mail domain whose DKIM keys the server makes and whose DNS records we publish; return its id.

        Idempotency: none; names are unique, so a repeat is refused as `already_exists`: read again.
        Source: the keys appear some time later, one Ed25519 and one RSA; poll `dkim_keys`. A domain captures its name
        for the whole server, so the caller has proved its ownership before.
        """
        return await self._create(
            "Domain",
            {
                "name": name,
                "description": description,
                "aliases": {},
                "certificateManagement": {"@type": "Manual"},
                "dkimManagement": {"@type": "Automatic"},
                "dnsManagement": {"@type": "Manual"},
                "subAddressing": {"@type": "Enabled"},
            },
        )

    async def destroy_domain(self, domain_id: str) -> list[Link]:
        """Destroy a domain; return what refers to it and keeps it, nothing if it is gone.

        Idempotency: repeatable; an absent domain is a success.
        Source: mailboxes and lists go first, then the DKIM keys, of which the server may make one more meanwhile.
        """
        return await self._destroy("Domain", domain_id)

    async def read_dns_records(self, domain_id: str) -> list[DnsRecord]:
        """Return the records that the domain's owner must publish, in the order of the server's zone.

        Raises:
            VendorRejected: `stalwart_not_found` if there is no such domain.
        """
        rows = await self._get("Domain", [domain_id], ("id", "dnsZoneFile"))
        zone = next((row.get("dnsZoneFile", "") for row in rows if row.get("id") == domain_id), None)
        if zone is None:
            raise VendorRejected(VENDOR, "stalwart has no such domain", code="stalwart_not_found")
        try:
            return list(_records(zone))
        except dns.exception.DNSException as error:
            raise VendorUnavailable(VENDOR, "stalwart sent a zone that is not understood") from error

    async def dkim_keys(self, domain_id: str) -> list[DkimKey]:
        """Return the domain's signing keys, sorted by id; private keys are not asked for."""
        properties = ("id", "@type", "domainId", "selector", "stage")
        rows = await self._list_raw("DkimSignature", {"domainId": domain_id}, properties)
        keys = [_read(DkimKey, row) for row in rows if row.get("domainId") == domain_id]
        return sorted(keys, key=lambda key: key.id)

    async def destroy_dkim_key(self, key_id: str) -> list[Link]:
        """Destroy a signing key; return what refers to it and keeps it, nothing if it is gone.

        Idempotency: repeatable; an absent key is a success.
        """
        return await self._destroy("DkimSignature", key_id)

    async def find_user_role(self) -> Role | None:
        """Return the built-in role that ordinary accounts have by default, for a new role to inherit.

        Source: it is an object like any other, made with the store and known by its description; a server that was
        only ever started in recovery mode has none. The smallest id wins: the server's own came first.
        """
        return next((role for role in await self.find_roles(_USER_ROLE) if role.description == _USER_ROLE), None)

    async def find_roles(self, marker: str) -> list[Role]:
        """Return the roles whose description contains the marker as a whole, sorted by id.

        Source: the filter finds words anywhere, in any order; `tenant-acme` must not find `tenant-acme-corp`.
        """
        standing_alone = re.compile(rf"(?<![\w:/.-]){re.escape(marker)}(?![\w:/.-])")
        properties = ("id", "description", "disabledPermissions", "roleIds")
        rows = await self._list("Role", {"description": marker}, Role, properties)
        return sorted((row for row in rows if standing_alone.search(row.description)), key=lambda role: role.id)

    async def create_role(self, spec: RoleSpec) -> str:
        """Create a role and return its id.

        Idempotency: none, and nothing is unique: a repeat makes a second role. Look for the mark before and after.
        """
        return await self._create(
            "Role",
            {
                "description": spec.description,
                "roleIds": dict.fromkeys(spec.inherits, True),
                "enabledPermissions": {},
                "disabledPermissions": dict.fromkeys(spec.disabled_permissions, True),
            },
        )

    async def destroy_role(self, role_id: str) -> list[Link]:
        """Destroy a role; return the accounts and roles that refer to it and keep it, nothing if it is gone.

        Idempotency: repeatable; an absent role is a success.
        """
        return await self._destroy("Role", role_id)

    async def find_mailbox(self, local_part: str, domain_id: str) -> Mailbox | None:
        """Return the user account of exactly this address; a group or list that holds it is not a mailbox."""
        properties = ("id", "@type", "name", "domainId", "description", "roles", "quotas")
        rows = await self._list_raw("Account", {"name": local_part, "domainId": domain_id}, properties)
        mailboxes = [_read(Mailbox, row) for row in rows if row.get("@type") == "User"]
        address = (local_part, domain_id)
        return next((mailbox for mailbox in mailboxes if (mailbox.local_part, mailbox.domain_id) == address), None)

    async def create_mailbox(self, spec: MailboxSpec) -> str:
        """Create a mailbox with one role and without credentials, and return its id.

        Idempotency: none; addresses are unique, so a repeat is refused as `already_exists`: read again.
        """
        return await self._create(
            "Account",
            {
                "@type": "User",
                "name": spec.local_part,
                "domainId": spec.domain_id,
                "description": spec.description,
                "roles": {"@type": "Custom", "roleIds": {spec.role_id: True}},
                "permissions": {"@type": "Inherit"},
                "quotas": {"maxDiskQuota": spec.quota_bytes},
            },
        )

    async def destroy_mailbox(self, mailbox_id: str) -> list[Link]:
        """Destroy a mailbox with its mail; return what refers to it and keeps it, nothing if it is gone.

        Idempotency: repeatable; an absent mailbox is a success.
        Source: the address is free at once; the mail is erased by a task some time later, in the community edition
        without a way back.
        """
        return await self._destroy("Account", mailbox_id)

    async def any_exists(self, links: list[Link]) -> bool:
        """Tell whether any of these objects can still be read."""
        for link in links:
            # Source: of these kinds there are variants, and every answer says which one it is.
            variants = link.kind in {"Account", "DkimSignature"}
            if await self._get(link.kind, [link.id], ("id", "@type") if variants else ("id",)):
                return True
        return False

    async def _destroy(self, kind: str, object_id: str) -> list[Link]:
        result = await self._invoke(f"x:{kind}/set", {"destroy": [object_id]}, write=True)
        if object_id in (result.get("destroyed") or ()):
            return []
        problem = (result.get("notDestroyed") or {}).get(object_id)
        match problem:
            case {"type": "notFound"}:
                return []
            case {"type": "objectIsLinked", "linkedObjects": [_, *_] as links}:
                return [_read(Link, link) for link in links]
        raise _object_error(problem)

    async def _create(self, kind: str, fields: dict[str, Any]) -> str:
        # One object per call: there are no transactions, and a batch that fails half-way says little about its halves.
        result = await self._invoke(f"x:{kind}/set", {"create": {_NEW: fields}}, write=True)
        created = (result.get("created") or {}).get(_NEW)
        if isinstance(created, dict) and isinstance(created.get("id"), str):
            return str(created["id"])
        raise _object_error((result.get("notCreated") or {}).get(_NEW))

    async def _list(
        self, kind: str, condition: dict[str, str], model: type[_Model], properties: tuple[str, ...]
    ) -> list[_Model]:
        return [_read(model, row) for row in await self._list_raw(kind, condition, properties)]

    async def _list_raw(
        self, kind: str, condition: dict[str, str], properties: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        position = 0
        while True:
            query = {"filter": condition, "position": position, "limit": _PAGE_SIZE}
            page = await self._invoke(f"x:{kind}/query", query, write=False)
            ids = page.get("ids") or []
            if not ids:
                return rows
            rows += await self._get(kind, ids, properties)
            if len(ids) < (page.get("limit") or _PAGE_SIZE):
                return rows
            position += len(ids)

    async def _get(self, kind: str, ids: list[str], properties: tuple[str, ...]) -> list[dict[str, Any]]:
        # Source: without `properties` a domain computes its whole zone and an account its used quota.
        result = await self._invoke(f"x:{kind}/get", {"ids": ids, "properties": list(properties)}, write=False)
        return list(result.get("list") or [])

    async def _invoke(self, method: str, arguments: dict[str, Any], *, write: bool) -> dict[str, Any]:
        """Call one method and return its result."""
        request = {"using": _USING, "methodCalls": [[method, arguments, _CALL_ID]]}
        response = await call(VENDOR, self._http, "POST", "/jmap/", write=write, json=request)
        if not response.is_success:
            raise _request_error(response, write=write)
        ((name, result, call_id),) = decode(VENDOR, _Reply, response, write=write).methodResponses
        if call_id == _CALL_ID and name == method:
            return result
        if call_id == _CALL_ID and name == "error":
            raise _method_error(result, write=write)
        raise no_answer(VENDOR, f"stalwart answered something else than {method}", write=write)


def _request_error(response: httpx.Response, *, write: bool) -> VendorError:
    status, problem = response.status_code, json_object(response)
    kind = str(problem.get("type", "")).rpartition(":")[2]
    message = safe_text(f"stalwart answered {status}: {problem.get('detail') or response.text}")
    if response.is_server_error:
        return no_answer(VENDOR, message, write=write, http_status=status)
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.BAD_REQUEST and kind == "limit"):
        # Source: more than four requests at a time are a 400, too many a minute a 429. Both were refused undone.
        return VendorRateLimited(VENDOR, message, http_status=status, retry_after=retry_after(response.headers))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED):
        # Source: 402 means that the password is right and a second factor is missing: no retry brings one.
        return VendorAuthFailed(VENDOR, message, http_status=status)
    code = None
    if status == HTTPStatus.FORBIDDEN:
        code = "vendor_forbidden"
    elif status == HTTPStatus.NOT_FOUND or kind == "unknownCapability":
        # Source: servers up to 0.15 know neither these routes nor the capability.
        code = "generation_mismatch"
    elif kind:
        code = _own_code(kind)
    return VendorRejected(VENDOR, message, code=code, http_status=status)


def _method_error(error: dict[str, Any], *, write: bool) -> VendorError:
    kind = str(error.get("type", "unknown"))
    message = safe_text(f"stalwart refused the call ({kind}): {error.get('description', '')}")
    if kind in _SERVER_FAILED:
        return no_answer(VENDOR, message, write=write, http_status=HTTPStatus.OK)
    code = "vendor_forbidden" if kind == "forbidden" else _own_code(kind)
    return VendorRejected(VENDOR, message, code=code, http_status=HTTPStatus.OK)


def _object_error(error: object) -> VendorError:
    if not isinstance(error, dict):
        return no_answer(VENDOR, "stalwart said neither that it did it nor why not", write=True)
    kind = str(error.get("type", "unknown"))
    if kind == "primaryKeyViolation":
        # The id in the answer may name an object of somebody else: the caller reads again, by name, and compares.
        return VendorRejected(VENDOR, "stalwart has it already", code="already_exists", http_status=HTTPStatus.OK)
    properties = ", ".join(map(str, error.get("properties") or ()))
    message = safe_text(f"stalwart refused the object ({kind}) {properties}: {error.get('description', '')}")
    if kind == "rateLimit":
        return VendorRateLimited(VENDOR, message, http_status=HTTPStatus.OK)
    code = "vendor_forbidden" if kind == "forbidden" else _own_code(kind)
    return VendorRejected(VENDOR, message, code=code, http_status=HTTPStatus.OK)


def _own_code(kind: str) -> str:
    """Return `stalwart_over_quota` for `overQuota`; anything that is no such word becomes `stalwart_unknown`."""
    word = kind if re.fullmatch(r"[A-Za-z]{1,40}", kind) else "unknown"
    return "stalwart_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower()


def _read(model: type[_Model], row: dict[str, Any]) -> _Model:
    try:
        return model.model_validate(row)
    except ValidationError:
        raise VendorUnavailable(VENDOR, f"stalwart sent a {model.__name__} that is not understood") from None


def _records(zone: str) -> Iterator[DnsRecord]:
    rrsets = dns.zonefile.read_rrsets(zone, rdclass=None, default_ttl=3600, origin=dns.name.root, relativize=False)
    for rrset in rrsets:
        for rdata in rrset:
            if isinstance(rdata, dns.rdtypes.ANY.TXT.TXT):
                value = b"".join(rdata.strings).decode("utf-8", "replace")
            else:
                value = rdata.to_text().removesuffix(".")
            yield DnsRecord(name=rrset.name.to_text(omit_final_dot=True), type=rrset.rdtype.name, value=value)
