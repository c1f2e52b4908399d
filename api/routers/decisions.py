"""What operators decide about a job: retry, skip, cancel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from api.access import Caller, Guard, Role, refuse_unknown_query
from api.body import JsonBody, Payload, idempotency_key, idempotent_request
from api.fields import Text
from api.reference import IDEMPOTENCY_KEY, PREFER
from api.routers.operations import answer_job, encode, refuse_plan
from api.views import OperationView
from domain.operations import DecisionAction
from runtime.decisions import Decisions

router = APIRouter(tags=["operations"])


class DecisionPayload(Payload):
    """Why it was decided, for the audit log."""

    reason: Text | None = None


BODY = JsonBody(DecisionPayload, required=False)


async def _decider(request: Request) -> Caller:
    caller = await Guard(Role.OPERATOR).admit(request)
    refuse_plan(request)
    refuse_unknown_query(request)
    return caller


Decider = Annotated[Caller, Depends(_decider)]


def decision(path: str) -> Callable[[Any], Any]:
    """Mount a route that decides about an operation."""
    return router.post(
        f"/operations/{{operation_id}}{path}",
        status_code=202,
        response_model=OperationView,
        responses={200: {"model": OperationView, "description": "The job ended within `Prefer: wait`"}},
        openapi_extra={**BODY.openapi, "parameters": [IDEMPOTENCY_KEY, PREFER]},
    )


@decision("/cancel")
async def cancel(request: Request, caller: Decider, operation_id: str) -> JSONResponse:
    """Cancel a job: what it made is undone, step by step, before it ends as `canceled`.

    Idempotency: to cancel what is being canceled changes nothing.
    """
    return await _decide(request, caller, operation_id, DecisionAction.CANCEL, None)


@decision("/retry")
async def retry(request: Request, caller: Decider, operation_id: str) -> JSONResponse:
    """Try every parked step of a job again."""
    return await _decide(request, caller, operation_id, DecisionAction.RETRY, None)


@decision("/steps/{name}/retry")
async def retry_step(request: Request, caller: Decider, operation_id: str, name: str) -> JSONResponse:
    """Try one parked step again."""
    return await _decide(request, caller, operation_id, DecisionAction.RETRY, name)


@decision("/steps/{name}/skip")
async def skip_step(request: Request, caller: Decider, operation_id: str, name: str) -> JSONResponse:
    """Go on without a parked step; what depends on it is skipped too."""
    return await _decide(request, caller, operation_id, DecisionAction.SKIP, name)


async def _decide(
    request: Request, caller: Caller, operation_id: str, action: DecisionAction, step: str | None
) -> JSONResponse:
    decisions: Decisions = request.app.state.decisions
    key = idempotency_key(request)
    body = await BODY.read(request)
    recorded = await decisions.decide(
        operation_id,
        action,
        step=step,
        reason=body.reason,
        requester=caller.requester,
        repeat=idempotent_request(request, caller, key, body) if key is not None else None,
        encode=functools.partial(encode, request, caller),
    )
    return await answer_job(request, caller, recorded)
