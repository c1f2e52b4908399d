"""Operations: what jobs are and were."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError

from api.access import Caller, Guard, Role
from api.paging import DEFAULT_LIMIT, Cursor, Limit, decode_cursor, encode_cursor, split_page
from api.views import OperationPage, OperationView, view_operation
from domain.errors import Malformed, NotFound
from domain.operations import Operation, OperationKind, OperationState
from runtime.clock import utcnow
from runtime.commits import Recorded
from runtime.wiring import Store
from store.operations import OperationFilter

router = APIRouter(tags=["operations"])

LONGEST_WAIT_SECONDS = 30
LOOK_EVERY_SECONDS = 0.1
RETRY_AFTER_SECONDS = 1
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})(?=$|[,;\s])")

READERS = Guard(Role.OPERATOR, Role.PARTNER)
Reader = Annotated[Caller, Depends(READERS)]


@router.get("/operations")
async def list_operations(
    request: Request,
    caller: Reader,
    tenant: Annotated[str | None, Query(description="slug")] = None,
    kind: OperationKind | None = None,
    state: OperationState | None = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> OperationPage:
    """List operations, newest first; a partner's are those of its own tenants."""
    store: Store = request.app.state.store
    among = None if caller.is_operator else await store.tenants.slugs(caller.visible_tenants)
    wanted = OperationFilter(among=among, tenant_slug=tenant, kind=kind, state=state)
    before = decode_cursor(cursor, str)[0] if cursor is not None else None
    page, last = split_page(await store.operations.page(wanted, before, limit + 1), limit)
    return OperationPage(
        items=[show(request, caller, each) for each in page],
        next_cursor=encode_cursor(last.id) if last is not None else None,
    )


@router.get("/operations/{operation_id}")
async def get_operation(request: Request, caller: Reader, operation_id: str) -> OperationView:
    """Return one operation with its steps."""
    return show(request, caller, await readable_operation(request.app.state.store, caller, operation_id))


async def readable_operation(store: Store, caller: Caller, operation_id: str) -> Operation:
    """Return an operation that is the caller's to see.

    Raises:
        NotFound: there is none.
    """
    operation = await store.operations.get(operation_id)
    if operation is None or not await is_visible(store, caller, operation):
        raise NotFound("There is no such operation.")
    return operation


async def is_visible(store: Store, caller: Caller, operation: Operation) -> bool:
    """Tell whether an operation is the caller's to see."""
    if caller.is_operator:
        return True
    if operation.tenant_slug is None:
        return False
    tenant = await store.tenants.get(operation.tenant_slug)
    return tenant is not None and caller.may_see(tenant)


def show(request: Request, caller: Caller, operation: Operation) -> OperationView:
    """Return an operation as this caller may see it."""
    ui: str | None = request.app.state.settings.temporal_ui_url
    namespace: str = request.app.state.temporal.namespace
    return view_operation(
        operation,
        utcnow(),
        for_operator=caller.is_operator,
        workflows_url=f"{ui.rstrip('/')}/namespaces/{quote(namespace, safe='')}/workflows" if ui is not None else None,
    )


def encode(request: Request, caller: Caller, operation: Operation) -> dict[str, Any]:
    """Return an operation as JSON that this caller may read."""
    return show(request, caller, operation).model_dump(mode="json", by_alias=True)


async def answer_job(request: Request, caller: Caller, recorded: Recorded) -> JSONResponse:
    """Return the answer to a request that a job carries out: at once, or once it has ended if the caller prefers."""
    headers = {"Location": f"/operations/{recorded.answer['id']}"}
    if recorded.replayed:
        headers["Idempotency-Replayed"] = "true"
    seconds = preferred_wait(request)
    if seconds > 0:
        headers["Preference-Applied"] = f"wait={int(seconds)}"
        finished = await wait_until_closed(request.app.state.store, recorded.answer["id"], seconds)
        if finished is not None:
            return JSONResponse(encode(request, caller, finished), 200, headers)
    headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return JSONResponse(recorded.answer, 202, headers)


def refuse_plan(request: Request) -> None:
    """Refuse to be asked first by a job that cannot say what it would do.

    Raises:
        Malformed: `not_supported`.
    """
    if "dryRun" in request.query_params or "if-plan-match" in request.headers:
        raise Malformed("This job has no plan yet.", code="not_supported")


def preferred_wait(request: Request) -> float:
    """Return how long the caller prefers to wait for the end of a job (RFC 7240), in seconds, at most 30."""
    match = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return float(min(int(match.group(1)), LONGEST_WAIT_SECONDS)) if match else 0.0


async def wait_until_closed(store: Store, operation_id: str, seconds: float) -> Operation | None:
    """Return an operation once it has ended, None if that was not seen within the time."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                operation = await store.operations.get(operation_id)
                if operation is not None and operation.closed_at is not None:
                    return operation
                await asyncio.sleep(LOOK_EVERY_SECONDS)
    # The job is recorded, so whatever is away while we wait must not turn the answer into a refusal.
    except (TimeoutError, PyMongoError):
        return None
