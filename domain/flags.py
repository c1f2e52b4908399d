"""Feature flags: what they hold and how they are evaluated. Pure, so that golden vectors can hold it still."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from pydantic import Field

from domain.model import Model


class FlagState(StrEnum):
    """How a flag decides."""

    OFF = "off"
    ON = "on"
    TARGETED = "targeted"
    ROLLOUT = "rollout"


class FlagScope(Model):
    """Whom a flag speaks about; an empty axis matches everybody, all given axes must match."""

    plans: list[str] = Field(default_factory=list)
    tenant_slugs: list[str] = Field(default_factory=list)
    partner_slugs: list[str] = Field(default_factory=list)
    environments: list[str] = Field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether no axis is given."""
        return not (self.plans or self.tenant_slugs or self.partner_slugs or self.environments)


class Flag(Model):
    """A feature flag as it is stored."""

    key: str = Field(alias="_id")
    description: str
    state: FlagState = FlagState.OFF
    pct: int = Field(default=0, ge=0, le=100)
    scope: FlagScope = FlagScope()


class FlagSubject(Model):
    """The tenant a flag is evaluated for."""

    tenant_id: str
    tenant_slug: str
    plan: str
    partner_slug: str | None
    environment: str


def in_scope(scope: FlagScope, subject: FlagSubject) -> bool:
    """Tell whether every axis that is given names the subject."""
    axes = (
        (scope.plans, subject.plan),
        (scope.tenant_slugs, subject.tenant_slug),
        (scope.partner_slugs, subject.partner_slug),
        (scope.environments, subject.environment),
    )
    return all(value in allowed for allowed, value in axes if allowed)


def bucket(key: str, tenant_id: str) -> int:
    """Return 0..99: stable for a tenant and a flag, and unrelated between flags."""
    digest = hashlib.sha256(f"{tenant_id}:{key}".encode()).hexdigest()
    return int(digest, 16) % 100


def evaluate(flag: Flag, subject: FlagSubject) -> bool:
    """Decide a flag for a tenant. Raising `pct` only adds tenants."""
    match flag.state:
        case FlagState.OFF:
            return False
        case FlagState.ON:
            return True
        case FlagState.TARGETED:
            # An empty allow-list means nobody: the safe reading of a form that was saved too early.
            return not flag.scope.empty and in_scope(flag.scope, subject)
        case FlagState.ROLLOUT:
            return in_scope(flag.scope, subject) and bucket(flag.key, subject.tenant_id) < flag.pct
