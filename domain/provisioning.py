"""What passes between the provisioning workflow and its activities: ids and results, never personal data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from domain.model import Model
from domain.operations import Failure, OperationState, StepState


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


# What a run makes for its tenant alone, and removes again when it is canceled. The catalog's product and price are
# everybody's; a membership of a space, its quota and a domain's keys go with what they belong to.
UNDOABLE = frozenset(
    {
        "authentik.group",
        "authentik.user",
        "authentik.member",
        "stalwart.role",
        "stalwart.domain",
        "stalwart.mailbox",
        "ocis.group",
        "ocis.space",
        "stripe.customer",
        "stripe.subscription",
    }
)


class ProvisionPlan(Model):
    """What a provisioning run will do, decided once at its start."""

    domains: list[str]
    mailbox_domain: str | None
    billing_enabled: bool
    # It was canceled before it began.
    canceled: bool = False

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


class StepRecord(Model):
    """The input of `record_step`: the state that a workflow gives to steps."""

    operation_id: str
    steps: list[str]
    state: StepState
    failure: Failure | None = None
    # Which try of the step it was that parked.
    generation: int = 1


class DecisionRequest(Model):
    """The input of the updates `retry`, `skip` and `cancel`: the parked steps that are meant; none for `cancel`."""

    steps: list[str] = Field(default_factory=list)


class UndoPlan(Model):
    """What a canceled run has to undo, and for how long it must wait before."""

    # For how long an attempt may still write outside: what it makes would come after its undoing.
    unsettled_seconds: float = 0.0
    # Steps that may have made something, in the order they were planned.
    steps: list[str] = Field(default_factory=list)
    # It was canceled too late: what it made is in use, and nothing is to be undone.
    outcome_stands: bool = False


class OutcomeRequest(TenantRequest):
    """The input of `record_tenant_outcome` and `record_tenant_abandoned`: what failed for good, if anything."""

    failure: Failure | None = None


class Settlement(Model):
    """What still has to happen before an operation may release its lock."""

    # For how long an attempt may still write outside.
    unsettled_seconds: float = 0.0
    # Steps that were tried more than once: at a vendor without uniqueness they may have made doubles.
    repeated: list[str] = Field(default_factory=list)
    # It was canceled before its outcome was recorded: nothing was recorded, and what was made is to be undone.
    canceled: bool = False


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
