"""Payloads in clear for operators: the remote codec that Temporal's web UI and command line ask.

The command line sends a bearer token. The web UI of the embedded server cannot; its browser gets a cookie that only
these routes take, and only from the web UI's own origin.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from pydantic import Field
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.api.common.v1 import Payload as TemporalPayload

from api.access import OPERATOR_ONLY, Caller, Guard, Role, caller_of, refuse_unknown_query, verified_claims
from api.body import JsonBody, Payload
from api.errors import MAX_FIELD_ERRORS
from domain.errors import Invalid, NotAllowed, NotFound, Unauthenticated
from domain.model import Model, Timestamp
from runtime.clock import utcnow
from runtime.codec import EncryptingCodec
from runtime.key_ring import CannotOpen, KeyRing
from runtime.logging import get_logger
from runtime.settings import Settings

log = get_logger(__name__)

router = APIRouter(prefix="/codec", tags=["codec"])

COOKIE = "dezky_codec"
SESSION_LASTS_SECONDS = 3600
# Temporal takes no message above 4 MiB; base64 makes it a third larger, and JSON is wrapped around it.
MAX_BODY_BYTES = 8 * 1024 * 1024
# However short a payload is, it costs time on the event loop and up to about 200 bytes of answer: so the answer is at
# most a few megabytes larger than the request. An event of Temporal's holds a handful.
MOST_PAYLOADS = 10_000

_SESSION = b"codec-session"

_SCRIPT = """
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = event.target.elements.token;
  const answer = await fetch("", {method: "POST", headers: {Authorization: `Bearer ${field.value.trim()}`}});
  field.value = "";
  if (answer.ok) location.assign(document.querySelector("a").href);
  else document.querySelector("output").textContent = (await answer.json()).detail;
});
"""
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Read encrypted payloads</title>
<h1>Read encrypted payloads</h1>
<p>With an operator's token this browser may read payloads in the <a href="{ui}">Temporal web UI</a> for an hour.</p>
<form method="post">
  <label>Token <input name="token" type="password" autocomplete="off" required autofocus></label>
  <button>Open the session</button>
  <output></output>
</form>
<script>{script}</script>
</html>
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# Nothing but the one script runs, it talks to this API alone, and no other page can frame it.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_SCRIPT_HASH}'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


class CodecPayloads(Payload):
    """Temporal's payloads in protobuf's JSON form: `{metadata{name: base64}, data: base64}`."""

    # The CLI leaves an empty list out, as protobuf's JSON form does, and asks so about a failure without details.
    # Millions of wrong items must not become millions of errors.
    payloads: list[dict[str, Any]] = Field(default_factory=list, max_length=MOST_PAYLOADS, fail_fast=True)


class CodecSession(Model):
    """How long the cookie in this answer is good for."""

    expires_at: Timestamp


BODY = JsonBody(CodecPayloads, max_bytes=MAX_BODY_BYTES)


async def operator(request: Request) -> Caller:
    """Return the operator who asks, by bearer token, else by the session's cookie.

    The person is looked up each time, so whoever stops being an operator loses the session at once.

    Raises:
        Unauthenticated: there is neither, or it proves nothing any more.
        NotAllowed: the caller is no operator, or the cookie came from elsewhere than the web UI.
        Malformed: a query parameter is not one of the route's.
    """
    cookie = request.cookies.get(COOKIE)
    if cookie is None or "authorization" in request.headers:
        return await Guard(Role.OPERATOR)(request)
    # A browser sends the cookie whoever makes it ask, and says who did.
    origin = ui_origin(request.app.state.settings)
    if origin is None or request.headers.get("origin") != origin:
        raise NotAllowed("A session is only good in the Temporal web UI.", code="origin_not_allowed")
    caller = await caller_of(request, _subject_of(cookie, _keys(request)), for_operators=True)
    if not caller.is_operator:
        raise NotAllowed(OPERATOR_ONLY, code="operator_only")
    refuse_unknown_query(request)
    return caller


Operator = Annotated[Caller, Depends(operator)]
# The web UI sends it. It changes nothing: no payload is stored elsewhere than in its history.
PreserveStorageRefs = Annotated[str | None, Query(alias="preserveStorageRefs")]


@router.post("/decode", openapi_extra=BODY.openapi)
async def decode(request: Request, caller: Operator, _refs: PreserveStorageRefs = None) -> CodecPayloads:
    """Return payloads in clear. One that cannot be decrypted comes back as it was sent.

    So one lost key hides no other payload, what could not be read stays recognisable by its marker and key id, and
    nothing made up ever stands in a history that somebody saves. The log names the reason.
    """
    payloads = await _read(request)
    codec = EncryptingCodec(_keys(request))
    reasons: set[str] = set()

    def opened(payload: TemporalPayload) -> TemporalPayload:
        try:
            return codec.open(payload)
        except CannotOpen as error:
            reasons.add(str(error))
            return payload

    answer = _written([opened(each) for each in payloads])
    log.info("payloads_decoded", subject=caller.user.id, count=len(payloads))
    if reasons:
        log.warning("payloads_not_decoded", subject=caller.user.id, reasons=sorted(reasons)[:10])
    return answer


@router.post("/encode", openapi_extra=BODY.openapi)
async def encode(request: Request, caller: Operator, _refs: PreserveStorageRefs = None) -> CodecPayloads:
    """Return payloads encrypted with the current key, for an input that an operator gives by hand."""
    payloads = await _read(request)
    answer = _written(await EncryptingCodec(_keys(request)).encode(payloads))
    log.info("payloads_encoded", subject=caller.user.id, count=len(payloads))
    return answer


@router.post("/session")
async def open_session(
    request: Request, response: Response, caller: Annotated[Caller, Depends(Guard(Role.OPERATOR))]
) -> CodecSession:
    """Give the browser a cookie for an hour, though not beyond the token's own end."""
    settings: Settings = request.app.state.settings
    claims = await verified_claims(request)
    now = int(utcnow().timestamp())
    expires_at = min(now + SESSION_LASTS_SECONDS, claims.expires_at)
    response.set_cookie(
        COOKIE,
        _sealed_session(claims.subject, expires_at, _keys(request)),
        max_age=max(expires_at - now, 0),
        path=router.prefix,
        secure=settings.public_url.startswith("https:"),
        httponly=True,
        samesite="strict",
    )
    response.headers["Cache-Control"] = "no-store"
    log.info("codec_session_opened", subject=caller.user.id)
    return CodecSession(expires_at=datetime.fromtimestamp(expires_at, UTC))


@router.get("/session", include_in_schema=False)
async def session_page(request: Request) -> HTMLResponse:
    """Show the field into which an operator pastes a token, so that their browser gets the cookie.

    Raises:
        Malformed: there is a query parameter.
        NotFound: no web UI is configured.
    """
    refuse_unknown_query(request)
    settings: Settings = request.app.state.settings
    if settings.temporal_ui_url is None:
        raise NotFound("No Temporal web UI is configured.")
    page = _PAGE.format(ui=html.escape(settings.temporal_ui_url), script=_SCRIPT)
    return HTMLResponse(page, headers=_PAGE_HEADERS)


def ui_origin(settings: Settings) -> str | None:
    """Return the web UI's origin as a browser writes it, None without a web UI."""
    if settings.temporal_ui_url is None:
        return None
    url = httpx.URL(settings.temporal_ui_url)
    return f"{url.scheme}://{url.netloc.decode()}"


class CrossOrigin:
    """Lets the web UI's origin, and no other, read the answers of these routes."""

    def __init__(self, app: ASGIApp, origin: str | None) -> None:
        self._app = app
        self._origin = origin
        self._open = CORSMiddleware(
            app, allow_origins=[origin or ""], allow_methods=["POST"], allow_headers=["*"], allow_credentials=True
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        from_ui = (
            scope["type"] == "http"
            and scope["path"].startswith(f"{router.prefix}/")
            and Headers(scope=scope).get("origin", "") == self._origin
        )
        await (self._open if from_ui else self._app)(scope, receive, send)


def _keys(request: Request) -> KeyRing:
    settings: Settings = request.app.state.settings
    keys = settings.key_ring
    if keys is None:
        raise NotFound("Payloads are not encrypted here: PAYLOAD_KEYS is not set.", code="payloads_not_encrypted")
    return keys


async def _read(request: Request) -> list[TemporalPayload]:
    body = await BODY.read(request)
    parsed, errors = [], []
    for index, each in enumerate(body.payloads):
        try:
            # Fields that a newer Temporal adds are no mistake.
            parsed.append(ParseDict(each, TemporalPayload(), ignore_unknown_fields=True))
        except (ParseError, TypeError, ValueError, AttributeError):
            errors.append({"loc": ["payloads", str(index)], "msg": "This is no payload in protobuf's JSON form."})
    if errors:
        raise Invalid("The request is not valid.", errors=errors[:MAX_FIELD_ERRORS])
    return parsed


def _written(payloads: list[TemporalPayload]) -> CodecPayloads:
    return CodecPayloads(payloads=[MessageToDict(each) for each in payloads])


def _sealed_session(subject: str, expires_at: int, keys: KeyRing) -> str:
    clear = json.dumps({"subject": subject, "expiresAt": expires_at}).encode()
    key_id, sealed = keys.seal(clear, _SESSION)
    return f"{key_id}:{sealed.hex()}"


def _subject_of(cookie: str, keys: KeyRing) -> str:
    ended = Unauthenticated("The session has ended. Open a new one.", code="session_ended")
    key_id, _, sealed = cookie.partition(":")
    try:
        session = json.loads(keys.open(key_id, bytes.fromhex(sealed), _SESSION))
    except (CannotOpen, ValueError):
        raise ended from None
    if session["expiresAt"] <= utcnow().timestamp():
        raise ended
    subject: str = session["subject"]
    return subject
