"""Audit events: the final shape of one, before it is sequenced into the chain."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from domain.model import Model, Timestamp
from domain.operations import Acting, Operation, Step, StepState, system_of


class ActorType(StrEnum):
    """Who acted."""

    OPERATOR = "operator"
    PARTNER = "partner"
    MEMBER = "member"
    SYSTEM = "system"
    EXTERNAL = "external"


class Outcome(StrEnum):
    """How it ended."""

    SUCCESS = "success"
    DENIED = "denied"
    FAILURE = "failure"


class Actor(Model):
    """Who acted, by id."""

    type: ActorType
    id: str


class Resource(Model):
    """What was acted on."""

    type: str
    id: str


class Change(Model):
    """One field that changed; never personal data."""

    field: str
    before: Any = None
    after: Any = None


class Personal(Model):
    """Personal data of one subject, readable only while the subject's key exists."""

    subject: str
    key_id: str
    ciphertext: bytes


class PersonalData(Model):
    """Personal data of one subject in clear, before it is encrypted."""

    subject: str
    fields: dict[str, str]


class AuditEvent(Model):
    """One privileged action. `seq`, `prevHash` and `hash` come when it is sequenced."""

    id: str = Field(alias="_id")
    schema_version: int = 1
    at: Timestamp
    actor: Actor
    on_behalf_of: Actor | None = None
    action: str
    outcome: Outcome
    resource: Resource
    tenant_slug: str | None = None
    partner_slug: str | None = None
    source: str
    request_id: str | None = None
    operation_id: str | None = None
    reason: str | None = None
    changes: list[Change] = Field(default_factory=list)
    metadata: dict[str, str | int | bool | None] = Field(default_factory=dict)
    personal: list[Personal] = Field(default_factory=list)
    external_id: str | None = None


def event_of_step(operation: Operation, step: Step, at: datetime) -> AuditEvent:
    """Return the event of a step that changed something outside, or was about to when it was ended.

    Raises:
        ValueError: the step never was about to change anything.
    """
    done = step.state is StepState.DONE
    code = step.last_error.code if step.last_error is not None else None
    event = _acting_event(operation, step, at, done=done, code=code)
    if done and step.acting is not None and step.acting.shared:
        return event.model_copy(update={"id": shared_event_id(step.acting)})
    return event


def event_of_replaced(operation: Operation, step: Step, at: datetime, *, done: bool) -> AuditEvent:
    """Return the event of what a step was about to change before it turned to something else.

    Args:
        done: whether it was changed; otherwise nobody knows.

    Raises:
        ValueError: the step never was about to change anything.
    """
    event = _acting_event(operation, step, at, done=done, code="outcome_unknown")
    return event.model_copy(update={"id": f"{event.id}:{event.resource.id}"})


def _acting_event(operation: Operation, step: Step, at: datetime, *, done: bool, code: str | None) -> AuditEvent:
    acting = step.acting
    if acting is None:
        raise ValueError("a step that changed nothing has no event")
    return AuditEvent(
        id=step_event_id(operation.id, step.name, acting.action),
        at=at,
        actor=Actor(type=ActorType.SYSTEM, id="worker"),
        on_behalf_of=Actor(type=ActorType(operation.requested_by.type), id=operation.requested_by.id),
        action=acting.action,
        outcome=Outcome.SUCCESS if done else Outcome.FAILURE,
        resource=Resource(type=acting.resource_type, id=acting.resource_id),
        tenant_slug=operation.tenant_slug,
        partner_slug=operation.partner_slug,
        source=system_of(step.name),
        request_id=operation.request_id,
        operation_id=operation.id,
        metadata={} if done or code is None else {"code": code},
    )


def shared_event_id(acting: Acting) -> str:
    """Return the id of the event of an object that several tenants share: one for all their runs."""
    return f"{acting.resource_type}:{acting.resource_id}:{acting.action}"


def step_event_id(operation_id: str, step: str, action: str) -> str:
    """Return the id of the event of a step: the same for every attempt, so that it is written once."""
    return f"{operation_id}:{step}:{action}"
