"""How operations and tenants are shown, and to whom."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import Field

from domain.catalog import Currency, Cycle
from domain.model import Model, Timestamp
from domain.operations import (
    Decision,
    Failure,
    Operation,
    OperationKind,
    OperationState,
    Progress,
    RequestedBy,
    Step,
    StepState,
)
from domain.tenants import (
    SYSTEMS,
    BillingInfo,
    DnsRecord,
    DomainProof,
    DomainState,
    SystemFailure,
    SystemStatus,
    Tenant,
    TenantStatus,
    our_words,
)


class FailureView(Model):
    """What failed; partners read our sentence for the code, operators also what the vendor said."""

    code: str
    message: str
    step: str | None = None


class StepView(Model):
    """A step of an operation."""

    name: str
    state: StepState
    attempts: int
    deadline: Timestamp | None = None
    last_error: FailureView | None = None
    next_retry_at: Timestamp | None = None


class Links(Model):
    """Where to look further."""

    temporal_ui: str | None = None


class OperationView(Model):
    """An operation as the API shows it."""

    id: str
    kind: OperationKind
    state: OperationState
    revision: int
    lock_key: str
    tenant_slug: str | None
    partner_slug: str | None
    workflow_id: str | None
    reason: str | None
    progress: Progress
    steps: list[StepView]
    result: dict[str, Any] | None
    error: FailureView | None
    requested_by: RequestedBy
    # Decided, and not acted upon yet.
    decisions: list[Decision]
    cancel_requested_at: Timestamp | None
    created_at: Timestamp
    started_at: Timestamp | None
    closed_at: Timestamp | None
    links: Links


class OperationPage(Model):
    """A page of operations, newest first."""

    items: list[OperationView]
    next_cursor: str | None = None


class DomainView(Model):
    """A domain of a tenant, with the records to publish once it is live."""

    name: str
    state: DomainState
    proof: DomainProof | None
    dns_records: list[DnsRecord]


class _TenantFacts(Model):
    id: str
    slug: str
    name: str
    plan: str
    cycle: Cycle
    currency: Currency
    seats: int
    status: TenantStatus
    partner_slug: str | None
    provisioning_status: dict[str, SystemStatus]
    created_at: Timestamp


class TenantSummary(_TenantFacts):
    """A tenant in a list."""

    domains: list[str]


class TenantPage(Model):
    """A page of tenants."""

    items: list[TenantSummary]
    next_cursor: str | None = None


class TenantView(_TenantFacts):
    """A tenant, whole."""

    domains: list[DomainView]
    provisioning_errors: dict[str, SystemFailure]
    resources: dict[str, str]
    suspensions: list[dict[str, str]] = Field(default_factory=list)
    billing_info: BillingInfo | None
    legal_hold: bool
    version: int
    operation: OperationView | None
    updated_at: Timestamp


def view_operation(
    operation: Operation, now: datetime, *, for_operator: bool, workflows_url: str | None
) -> OperationView:
    """Show an operation; what a vendor said, and where Temporal shows the job, only to an operator."""
    link = None
    if for_operator and workflows_url is not None:
        # The id is encoded whole: its slashes are part of it.
        link = f"{workflows_url}/{quote(operation.workflow_id, safe='')}"
    return OperationView(
        id=operation.id,
        kind=operation.kind,
        state=operation.state,
        revision=operation.revision,
        lock_key=operation.lock_key,
        tenant_slug=operation.tenant_slug,
        partner_slug=operation.partner_slug,
        workflow_id=operation.workflow_id if for_operator else None,
        reason=operation.reason,
        progress=operation.progress,
        steps=[_view_step(step, now, for_operator=for_operator) for step in operation.steps.values()],
        result=operation.result,
        error=_view_failure(operation.error, for_operator=for_operator),
        requested_by=operation.requested_by,
        decisions=operation.decisions,
        cancel_requested_at=operation.cancel_requested_at,
        created_at=operation.created_at,
        started_at=operation.started_at,
        closed_at=operation.closed_at,
        links=Links(temporal_ui=link),
    )


def _view_step(step: Step, now: datetime, *, for_operator: bool) -> StepView:
    state = step.state_at(now)
    running = state in (StepState.RUNNING, StepState.LOST) and step.attempt is not None
    return StepView(
        name=step.name,
        state=state,
        attempts=step.attempts,
        deadline=step.attempt.deadline if running and step.attempt is not None else None,
        last_error=_view_failure(step.last_error, for_operator=for_operator),
        next_retry_at=step.next_retry_at,
    )


def _view_failure(failure: Failure | None, *, for_operator: bool) -> FailureView | None:
    if failure is None:
        return None
    message = failure.message if for_operator else our_words(failure.code)
    return FailureView(code=failure.code, message=message, step=failure.step)


def summarise_tenant(tenant: Tenant) -> TenantSummary:
    """Show a tenant in a list."""
    names = [each.name for each in tenant.domains]
    return TenantSummary.model_validate(
        {**tenant.model_dump(), "domains": names, "provisioning_status": _status_by_system(tenant)}
    )


def view_tenant(tenant: Tenant, operation: OperationView | None) -> TenantView:
    """Show a tenant with the operation that holds its lock."""
    return TenantView.model_validate(
        {**tenant.model_dump(), "provisioning_status": _status_by_system(tenant), "operation": operation}
    )


def _status_by_system(tenant: Tenant) -> dict[str, SystemStatus]:
    # A tenant older than a system lacks its status: it is still to come.
    return {**dict.fromkeys(SYSTEMS, SystemStatus.PENDING), **tenant.provisioning_status}
