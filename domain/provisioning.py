"""What passes between the provisioning workflow and its activities: ids and results, never personal data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from domain.model import Model
from domain.operations import Failure, OperationState


class RetryProfile(StrEnum):
    """Which set of timeouts and retries a workflow uses; part of its input, so that it replays."""

    PRODUCTION = "production"
    FAST = "fast"


class OperationRequest(Model):
    """The input of every workflow that runs an operation on a tenant."""

    operation_id: str
    tenant_slug: str
    profile: RetryProfile = RetryProfile.PRODUCTION


class TenantRequest(Model):
    """The input of an activity that works on a tenant."""

    operation_id: str
    tenant_slug: str


class DomainRequest(TenantRequest):
    """The input of an activity that works on one domain of a tenant."""

    domain: str


class ProvisionPlan(Model):
    """What a provisioning run will do, decided once at its start."""

    domains: list[str]
    mailbox_domain: str | None
    billing_enabled: bool

    @property
    def steps(self) -> list[str]:
        """Return the names of the planned steps in the order they are shown."""
        names = ["authentik.group", "authentik.user", "authentik.member", "stalwart.role"]
        for domain in self.domains:
            names += [f"stalwart.domain.{domain}", f"stalwart.dkim.{domain}"]
        if self.mailbox_domain is not None:
            names.append("stalwart.mailbox")
        names += ["ocis.group", "ocis.space", "ocis.member"]
        if self.billing_enabled:
            names += ["stripe.customer", "stripe.product", "stripe.price", "stripe.subscription"]
        return names


class StepResult(Model):
    """What a step left behind."""

    resource_id: str | None = None
    # More than one object made for the same purpose was seen: the others are to be removed.
    doubles: bool = False


class SpaceResult(StepResult):
    """What the space step left behind."""

    quota_matches: bool = True


class OutcomeRequest(TenantRequest):
    """The input of `record_tenant_outcome`: the first final failure, or None if every branch is ok."""

    failure: Failure | None = None


class Settlement(Model):
    """What still has to happen before an operation may release its lock."""

    # For how long an attempt may still write outside.
    unsettled_seconds: float = 0.0
    # Steps that were tried more than once: at a vendor without uniqueness they may have made doubles.
    repeated: list[str] = Field(default_factory=list)


class CloseRequest(Model):
    """The input of `close_operation`."""

    operation_id: str
    state: OperationState
    failure: Failure | None = None
    result: dict[str, str] | None = None


def keeper(ids: list[str], *, known: str | None, in_use: str | None = None) -> str:
    """Choose which of several objects made for one purpose stays: the known one, else one in use, else the first.

    Every attempt chooses the same, so that two of them never remove each other's.
    """
    for preferred in (known, in_use):
        if preferred is not None and preferred in ids:
            return preferred
    return min(ids)
