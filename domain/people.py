"""Partners, users and what a person may do."""

from __future__ import annotations

from enum import StrEnum

import email_validator
from pydantic import Field

from domain.model import Model, Timestamp


class PartnerStatus(StrEnum):
    """Where a partner stands; only an active one may create tenants."""

    ACTIVE = "active"
    IN_NEGOTIATION = "in-negotiation"
    PAUSED = "paused"
    TERMINATED = "terminated"


class PartnerLimits(Model):
    """What a partner may have at most; None is no limit."""

    tenants: int | None = None
    seats: int | None = None


class Partner(Model):
    """A reseller; the tenants are its customers."""

    id: str = Field(alias="_id")
    slug: str
    name: str
    domain: str | None = None
    status: PartnerStatus = PartnerStatus.IN_NEGOTIATION
    margin_pct: int = 0
    limits: PartnerLimits = PartnerLimits()
    created_at: Timestamp


class TenantRole(StrEnum):
    """What a person is in a tenant."""

    ADMIN = "admin"
    MEMBER = "member"


class Membership(Model):
    """A person's place in a tenant."""

    tenant_id: str
    role: TenantRole


class User(Model):
    """A person. `subject` links it to Authentik; the e-mail never links or authorises."""

    id: str = Field(alias="_id")
    subject: str | None = None
    # Identities that were given up. None of them is ever linked again: it is gone, or is about to be.
    former_subjects: list[str] = Field(default_factory=list)
    email: str
    name: str
    platform_admin: bool = False
    auditor: bool = False
    partner_id: str | None = None
    memberships: list[Membership] = Field(default_factory=list)
    active: bool = True
    created_at: Timestamp

    def role_in(self, tenant_id: str) -> TenantRole | None:
        """Return the person's role in a tenant, None if they are no member."""
        return next((each.role for each in self.memberships if each.tenant_id == tenant_id), None)


def normalise_email(text: str) -> str:
    """Return an address case-folded and in its one spelling.

    Raises:
        ValueError: it is not an address of one person at a full domain name.
    """
    try:
        # A test environment allows the reserved ending .test, which staging installations use; nothing is looked up.
        parsed = email_validator.validate_email(text, test_environment=True, strict=True)
    except email_validator.EmailNotValidError as error:
        raise ValueError(str(error)) from error
    if "." not in parsed.domain or parsed.ascii_email is None:
        raise ValueError("The address must be at a full domain name and in ASCII.")
    return parsed.ascii_email.casefold()
