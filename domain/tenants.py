"""Tenants: what one is, and the rules its fields obey."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

import idna
from pydantic import Field

from domain.catalog import Currency, Cycle
from domain.model import Model, Timestamp
from domain.operations import FINISHED_STEPS, Step, StepState, system_of

SYSTEMS = ("authentik", "stalwart", "ocis", "stripe")
MAX_SEATS = 100_000
MAX_DOMAINS = 20
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class TenantStatus(StrEnum):
    """Where a tenant's life stands."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    PURGED = "purged"
    ABANDONED = "abandoned"


class DomainState(StrEnum):
    """How far a domain is: claimed, proved, or working in Stalwart with both its DKIM keys."""

    UNVERIFIED = "unverified"
    VERIFIED = "verified"
    LIVE = "live"


class SystemStatus(StrEnum):
    """How far a tenant is in one outside system."""

    PENDING = "pending"
    OK = "ok"
    ERROR = "error"
    SKIPPED = "skipped"
    DISABLED = "disabled"


class DnsRecord(Model):
    """A record for the partner to publish."""

    name: str
    type: str
    value: str


class DomainProof(Model):
    """How control of a domain was proved."""

    method: str
    at: Timestamp


class TenantDomain(Model):
    """A domain of a tenant; its name belongs to one tenant at a time."""

    name: str
    state: DomainState
    claimed_at: Timestamp
    external_id: str | None = None
    proof: DomainProof | None = None
    dns_records: list[DnsRecord] = Field(default_factory=list)


class BillingInfo(Model):
    """Who is invoiced."""

    company_name: str
    country: str
    vat_id: str | None = None
    email: str | None = None


class SystemFailure(Model):
    """Why a system is not ok, in our own words; the vendor's are kept with the operation, for operators."""

    code: str
    message: str
    attempts: int
    next_retry_at: Timestamp | None = None


class Tenant(Model):
    """A customer: the workspace that the outside systems must agree with."""

    id: str = Field(alias="_id")
    schema_version: int = 1
    slug: str
    name: str
    plan: str
    cycle: Cycle
    currency: Currency
    seats: int
    domains: list[TenantDomain] = Field(default_factory=list)
    partner_id: str | None = None
    partner_slug: str | None = None
    admin_user_id: str
    price_id: str
    status: TenantStatus
    suspensions: list[dict[str, str]] = Field(default_factory=list)
    billing_info: BillingInfo | None = None
    provisioning_status: dict[str, SystemStatus] = Field(default_factory=dict)
    provisioning_errors: dict[str, SystemFailure] = Field(default_factory=dict)
    resources: dict[str, str] = Field(default_factory=dict)
    legal_hold: bool = False
    version: int = 1
    created_at: Timestamp
    updated_at: Timestamp

    def domain(self, name: str) -> TenantDomain | None:
        """Return the domain of that name, None if the tenant has not claimed it."""
        return next((each for each in self.domains if each.name == name), None)

    @property
    def proved_domains(self) -> list[TenantDomain]:
        """Return the domains whose control is proved, in a stable order."""
        proved = (each for each in self.domains if each.state is not DomainState.UNVERIFIED)
        return sorted(proved, key=lambda each: each.name)


def normalise_domain(text: str) -> str:
    """Return a domain name in lower case A-labels, without a trailing dot.

    Raises:
        ValueError: it is not the name of a mail domain.
    """
    name = text.strip().lower()
    if not name.isascii() or "xn--" in name:
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"{text!r} is not a domain name.") from error
    name = name.removesuffix(".")
    labels = name.split(".")
    if (
        len(name) > 253
        or len(labels) < 2
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise ValueError(f"{text!r} is not a full domain name such as example.org.")
    return name


OUR_WORDS = {
    "vendor_unavailable": "The system cannot be reached or reports an error.",
    "vendor_warming_up": "The system is starting.",
    "vendor_rate_limited": "The system asked us to slow down.",
    "not_ready_yet": "The system is still working on it.",
    "outcome_unknown": "The answer was lost. What happened is looked up first.",
    "vendor_auth_failed": "Our access to the system is refused. An operator has to renew it.",
    "vendor_breaker_open": "Our access to the system is refused. An operator has to renew it.",
    "foreign_object": "A name that is needed is taken by something that was not made here.",
    "identity_exists": "The person's login name is taken by an account that is not linked to this one.",
    "space_not_empty": "There are files in the space. An operator has to decide about them.",
    "still_in_use": "Something else still uses it. An operator has to look at it.",
    "budget_spent": "It was tried for as long as allowed, without success.",
    "canceled": "The job was canceled.",
    "cleanup_incomplete": "The job was canceled, and something that it made is left.",
    "attempt_lost": "How the last try ended is not known. An operator has to look at it.",
    "ended_outside": "The job was ended from outside before it was done. An operator has to look at it.",
}


# A poll that has not seen the end yet is no error.
STILL_WORKING = "not_ready_yet"


def our_words(code: str) -> str:
    """Return our own sentence for an error code, for people who must not read a vendor's text."""
    return OUR_WORDS.get(code, "The system refused it. An operator has to look at it.")


def system_state(steps: Iterable[Step], system: str) -> tuple[SystemStatus, SystemFailure | None]:
    """Sum up the steps of one system.

    Returns:
        `error` and its cause while a step is failing; when all planned steps are finished `ok`, or `skipped` if an
        operator skipped one; else `pending`.
    """
    own = [step for step in steps if system_of(step.name) == system]
    failing = [step for step in own if _is_failing(step)]
    # One that will not go on by itself says more than one that is tried again.
    failing.sort(key=lambda step: (step.next_retry_at is not None, step.name))
    if failing:
        step = failing[0]
        code = step.last_error.code if step.last_error is not None else "vendor_error"
        message = our_words(code) + _what_next(step)
        cause = SystemFailure(code=code, message=message, attempts=step.attempts, next_retry_at=step.next_retry_at)
        return SystemStatus.ERROR, cause
    if own and all(step.state in FINISHED_STEPS for step in own):
        skipped = any(step.state is StepState.SKIPPED for step in own)
        return SystemStatus.SKIPPED if skipped else SystemStatus.OK, None
    return SystemStatus.PENDING, None


def _what_next(step: Step) -> str:
    if step.next_retry_at is not None:
        return " It is tried again."
    return " It waits for an operator." if step.state is StepState.PARKED else ""


def _is_failing(step: Step) -> bool:
    if step.last_error is None or step.last_error.code == STILL_WORKING:
        return step.state is StepState.FAILED
    # A running attempt after a failed one has not healed anything yet.
    return step.state in (StepState.FAILED, StepState.RETRYING, StepState.PARKED, StepState.RUNNING)
