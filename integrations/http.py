"""What the clients share: how a request is sent, and what it means when no usable answer comes back.

| what happened                                                             | raised              |
|---------------------------------------------------------------------------|---------------------|
| nothing was sent: refused, no connection in time, deadline already passed | `VendorUnavailable` |
| a read without a usable answer: timeout, dropped connection, 5xx, no JSON | `VendorUnavailable` |
| a write without one                                                       | `OutcomeUnknown`    |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from domain.errors import OutcomeUnknown, VendorError, VendorUnavailable
from integrations.call_context import correlation_id, out_of_time, pass_gate, time_limit

# Below the 30 s start-to-close of vendor activities, so that the client always ends before its activity does.
TOTAL_LIMIT = timedelta(seconds=25)
TIMEOUTS = httpx.Timeout(connect=5.0, read=20.0, write=10.0, pool=5.0)

MESSAGE_LENGTH = 300
_LONGEST_RETRY_AFTER = timedelta(days=1)
_SECRETS = re.compile(
    r"-----BEGIN .*?(-----END [A-Z ]*-----|$)"  # PEM
    r"|\b(?i:bearer|basic|token)\s+(?=\S*\d)[\w+/=.~-]{8,}"  # an echoed Authorization header; "Token invalid" is none
    r"|\b([sr]k|whsec)_[\w*]+"  # Stripe
    r"|\bAPI_[\w-]{8,}"  # Stalwart
    r"|\beyJ[\w-]+\.[\w.-]*",  # JWT
    re.DOTALL,
)

_Model = TypeVar("_Model", bound=BaseModel)


def build_http_client(
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    timeout: httpx.Timeout = TIMEOUTS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """Build the HTTP client of one vendor.

    It follows no redirect, which could carry the credential elsewhere, and takes no proxy from the environment.

    Args:
        base_url: root of the vendor's server, without a path of its API.
        headers: sent with every request, the credential among them.
        timeout: of each phase of a request; the whole request is limited by `call`.
        transport: in place of the network, for tests.
    """
    return httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        transport=transport,
    )


async def call(
    vendor: str,
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    write: bool,
    params: Mapping[str, str] | None = None,
    json: object = None,
    content: str | None = None,
    headers: Mapping[str, str] | None = None,
    limit: timedelta = TOTAL_LIMIT,
) -> httpx.Response:
    """Send one request, once, and return its answer whatever its status.

    Ensures that it ends within `limit` and by the deadline of the attempt. A cancellation passes through.

    Raises:
        VendorUnavailable: nothing was sent, or a read got no answer.
        OutcomeUnknown: a write got no answer.
        BreakerOpen: the vendor refused our credential before, so nothing was sent.
        Unavailable: whether it did cannot be told, so nothing was sent.
    """
    await pass_gate(vendor)
    if out_of_time():
        raise VendorUnavailable(vendor, f"{vendor} was not called: the time of this attempt is up")
    sent = dict(headers or {})
    if request_id := correlation_id.get():
        sent["X-Request-ID"] = request_id
    try:
        async with time_limit(limit):
            return await http.request(method, url, params=params, json=json, content=content, headers=sent)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise VendorUnavailable(vendor, f"{vendor} cannot be reached ({type(error).__name__})") from error
    except (httpx.RequestError, TimeoutError) as error:
        raise no_answer(vendor, f"{vendor} did not answer ({type(error).__name__})", write=write) from error


def no_answer(
    vendor: str,
    message: str,
    *,
    write: bool,
    http_status: int | None = None,
    request_id: str | None = None,
    replayed: bool = False,
) -> VendorError:
    """Return the error for a request without a usable answer: a write may have been done, a read just failed."""
    kind = OutcomeUnknown if write else VendorUnavailable
    return kind(vendor, message, http_status=http_status, request_id=request_id, replayed=replayed)


def decode(vendor: str, model: type[_Model], response: httpx.Response, *, write: bool) -> _Model:
    """Read the body of a success as a model.

    Raises:
        VendorUnavailable: a read was answered with something else (a proxy's page, a cut body).
        OutcomeUnknown: a write was.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        # Not chained: a validation error quotes its input.
        message = f"{vendor} answered {response.status_code} with a body that is not understood"
        raise no_answer(vendor, message, write=write, http_status=response.status_code) from None


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in a body, empty if there is none: for errors, whose bodies nobody guarantees."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def safe_text(text: object) -> str:
    """Return a vendor's own words on one line, bounded, with anything that looks like a secret replaced."""
    # Redacted before it is cut: half a secret would not be recognised.
    return " ".join(_SECRETS.sub("[redacted]", str(text)).split())[:MESSAGE_LENGTH]


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Read `Retry-After`, given as seconds or as an HTTP date; None if absent or unreadable, at most a day."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        # Bounded as text first: a number of any length would overflow.
        return min(timedelta(seconds=int(value[:9])), _LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    wait = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)
    return min(max(wait, timedelta(0)), _LONGEST_RETRY_AFTER)
