"""Who is calling, and what of ours is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fastapi import Request

from api.tokens import Claims, TokenVerifier
from domain.audit import Actor, ActorType
from domain.errors import Malformed, NotAllowed, Unauthenticated
from domain.people import Partner, PartnerStatus, User
from domain.tenants import Tenant
from runtime.commits import Requester
from runtime.wiring import Store
from store.tenants import Visibility

OPERATOR_AUDIENCE = "dezky-operator"
OPERATOR_ONLY = "This endpoint requires an operator-scoped token"


class Role(StrEnum):
    """What a caller is, the strongest first."""

    OPERATOR = "operator"
    PARTNER = "partner"
    MEMBER = "member"


@dataclass(frozen=True)
class Caller:
    """An authenticated person."""

    user: User
    role: Role
    partner: Partner | None
    request_id: str
    address: str | None

    @property
    def is_operator(self) -> bool:
        """Whether token and database both prove an operator."""
        return self.role is Role.OPERATOR

    @property
    def requester(self) -> Requester:
        """Return the caller as operations and audit events name them."""
        actor = Actor(type=ActorType(self.role.value), id=self.user.id)
        return Requester(actor=actor, request_id=self.request_id, address=self.address)

    def may_see(self, tenant: Tenant) -> bool:
        """Tell whether a tenant is the caller's to see."""
        own = self.partner is not None and tenant.partner_id == self.partner.id
        return self.is_operator or own or self.user.role_in(tenant.id) is not None

    @property
    def visible_tenants(self) -> Visibility:
        """Return which tenants are the caller's to see: the same as `may_see`, for lists."""
        return Visibility(
            everything=self.is_operator,
            partner_id=self.partner.id if self.partner is not None else None,
            tenant_ids=tuple(each.tenant_id for each in self.user.memberships),
        )


class Guard:
    """A route's dependency: authenticates, authorises, and refuses unknown query parameters, in this order."""

    def __init__(self, *roles: Role) -> None:
        """Admit callers of these roles, or everybody with a valid token if none is given."""
        self._roles = roles

    async def __call__(self, request: Request) -> Caller:
        """Return the caller.

        Raises:
            Unauthenticated: there is no token, or it proves nothing.
            NotAllowed: the person may not do this.
            Malformed: a query parameter is not one of the route's.
        """
        caller = await self.admit(request)
        refuse_unknown_query(request)
        return caller

    async def admit(self, request: Request) -> Caller:
        """Return the caller, whatever else the request asks for.

        Raises:
            Unauthenticated: there is no token, or it proves nothing.
            NotAllowed: the person may not do this.
        """
        caller = await identify(request)
        if self._roles and caller.role not in self._roles:
            if self._roles == (Role.OPERATOR,):
                raise NotAllowed(OPERATOR_ONLY, code="operator_only")
            raise NotAllowed("This is not open to you.")
        return caller


async def identify(request: Request) -> Caller:
    """Return who is calling, by token and database.

    Raises:
        Unauthenticated: there is no token, or it proves nothing.
        NotAllowed: the person is unknown here (`unknown_user`) or deactivated (`user_deactivated`).
    """
    claims = await verified_claims(request)
    return await caller_of(request, claims.subject, for_operators=claims.audience == OPERATOR_AUDIENCE)


async def verified_claims(request: Request) -> Claims:
    """Return what the request's bearer token proves.

    Raises:
        Unauthenticated: there is no token, or it proves nothing.
    """
    verifier: TokenVerifier = request.app.state.verifier
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("A bearer token is needed.")
    return await verifier.verify(token.strip())


async def caller_of(request: Request, subject: str, *, for_operators: bool) -> Caller:
    """Return what a proven login is in the database now.

    Args:
        for_operators: the login is for the operators' application; the database must agree.

    Raises:
        NotAllowed: the person is unknown here (`unknown_user`) or deactivated (`user_deactivated`).
    """
    store: Store = request.app.state.store
    user = await store.users.by_subject(subject)
    if user is None:
        raise NotAllowed("Nobody here is linked to this login.", code="unknown_user")
    if not user.active:
        raise NotAllowed("This person has been deactivated.", code="user_deactivated")
    partner = await store.partners.get(user.partner_id) if user.partner_id is not None else None
    if partner is not None and partner.status is PartnerStatus.TERMINATED:
        partner = None
    operator = for_operators and user.platform_admin
    role = Role.OPERATOR if operator else Role.PARTNER if partner is not None else Role.MEMBER
    state = request.scope["state"]
    return Caller(
        user=user, role=role, partner=partner, request_id=state["request_id"], address=state["client_address"]
    )


def refuse_unknown_query(request: Request) -> None:
    """Refuse parameters that the route does not have: a misspelt filter would silently return everything.

    Raises:
        Malformed: there is such a parameter.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise Malformed(f"Unknown query parameters: {', '.join(unknown)}.", code="unknown_parameter")
