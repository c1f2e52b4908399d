"""Renders the generated tables of `docs/reference`: `python -m tests.docs.generate` writes them into the pages.

A page keeps its own words; a table stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. Names,
defaults, statuses and whether a code is retried come from the code; what a setting means and what to do about a code
stands here, and a setting or code without such words is refused.
"""

from __future__ import annotations

import ast
import re
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from domain import errors
from domain.errors import ControlPlaneError, VendorError
from domain.tenants import OUR_WORDS
from runtime.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
ROOMS = ("domain", "store", "integrations", "activities", "workflows", "runtime", "api")

SETTINGS = {
    "ENVIRONMENT": "where this runs; `production` refuses development secrets and shortcuts, and is what feature flags "
    "compare their `environments` with",
    "LOG_FORMAT": "one JSON object a line, or text for people",
    "LOG_LEVEL": "least level that is logged",
    "API_HOST": "address the API listens on",
    "API_PORT": "port the API listens on",
    "PUBLIC_URL": "base of the `type` URIs in problem documents; with https, cookies are `Secure`",
    "TRUSTED_PROXIES": "addresses or networks (CIDR), comma-separated, whose `X-Forwarded-For` is believed",
    "MAX_BODY_BYTES": "largest request body that is read, at least 1024; `/codec` reads 8 MiB, whatever stands here",
    "MONGO_URL": "connection string; the server must be a replica set, because transactions need one",
    "MONGO_DATABASE": "name of the database",
    "PAYLOAD_KEYS": "keys for what Temporal keeps: `id:base64` of 32 bytes, comma-separated; the first encrypts, all "
    "decrypt ([rotate](../how-to/rotate-payload-keys.md)); absent: payloads stay in clear, which production refuses",
    "TEMPORAL_UI_URL": "base of the Temporal web UI, for `links.temporalUi`, and the one origin that may use `/codec` "
    "with a cookie; absent: no links, no cookies",
    "WORKER_METRICS_HOST": "address on which the worker serves its metrics",
    "WORKER_METRICS_PORT": "port on which the worker serves Prometheus metrics; absent: none",
    "OPERATION_PROFILE": "timeouts and retries of new operations; `fast` is for tests and refused in production",
    "DOMAIN_PROOF": "`assume` takes every domain of a new tenant as proved (refused in production); with `dns` it "
    "stays `unverified` and gets no mail domain, since verification is not built yet",
    "BILLING_STRIPE_ENABLED": "one of the two switches of billing; the flag `new_billing_engine` is the other",
    "AUTHENTIK_URL": "root of the Authentik server",
    "AUTHENTIK_TOKEN": "API token of the control plane's service account",
    "AUTHENTIK_ISSUER": "issuers whose tokens are accepted, comma-separated",
    "AUTHENTIK_AUDIENCE": "audiences, comma-separated; the nth belongs to the nth issuer and to no other",
    "STALWART_URL": "root of the Stalwart server",
    "STALWART_TOKEN": "API key of the control plane",
    "STALWART_GENERATION": "management interface of the server; the worker does not start against another one",
    "OCIS_URL": "root of the OCIS server",
    "OCIS_TOKEN": "bearer token of the one account that creates all spaces",
    "STRIPE_API_KEY": "secret or restricted key; needed in production when billing is enabled",
    "STRIPE_API_BASE": "another address than Stripe's own, for a stand-in",
    "STRIPE_RATE_PER_SECOND": "Stripe activities started per second over all workers; an activity makes several calls",
    "STRIPE_DAYS_UNTIL_DUE": "days until an invoice is due, 1 to 365",
}


@dataclass(frozen=True)
class Words:
    """What a person is told about a code, and the class it is raised as (`Failure`: recorded, never raised)."""

    raised_as: str
    when: str
    do: str


_FIX = "Correct the request."
_WAIT = "Nothing: it is tried again."
_LOOK = "Operator: read `lastError` of the step, put it right in the vendor's system."

CODES = {
    "malformed": Words(
        "Malformed", "The body is not JSON, or `Last-Event-ID` is no number of at most 15 digits.", _FIX
    ),
    "unknown_parameter": Words("Malformed", "A query parameter is not one of the route's.", _FIX),
    "cursor_malformed": Words("Malformed", "The cursor is not of this list or order.", "Start again without a cursor."),
    "idempotency_key_malformed": Words("Malformed", "The key is not 1 to 255 printable ASCII characters.", _FIX),
    "not_supported": Words("Malformed", "`dryRun` or `If-Plan-Match` on a job that has no plan yet.", "Leave it out."),
    "unauthenticated": Words("Unauthenticated", "There is no bearer token.", "Send one."),
    "token_invalid": Words(
        "Unauthenticated",
        "Signature, algorithm, key, issuer, audience or a required claim is wrong.",
        "Get a token from the issuer of your application.",
    ),
    "token_expired": Words("Unauthenticated", "The token has expired.", "Get a new one."),
    "session_ended": Words(
        "Unauthenticated", "The codec session has expired, or is none of ours.", "Open a new one at `/codec/session`."
    ),
    "not_allowed": Words("NotAllowed", "The caller's role does not open this route.", "-"),
    "operator_only": Words("NotAllowed", "An operator's route.", "Use an operator-scoped token."),
    "origin_not_allowed": Words(
        "NotAllowed",
        "A codec session's cookie came from another origin than the Temporal web UI's, or without `Origin`.",
        "Open the web UI at the address in `TEMPORAL_UI_URL`.",
    ),
    "unknown_user": Words("NotAllowed", "No user here has the token's subject.", "Have the person added."),
    "user_deactivated": Words("NotAllowed", "The user is deactivated.", "Ask an operator."),
    "tenants_are_created_by_partners": Words("NotAllowed", "An operator tried to create a tenant.", "Use a partner."),
    "partner_not_active": Words("NotAllowed", "The partner is in negotiation or terminated.", "Ask an operator."),
    "partner_paused": Words("NotAllowed", "The partner is paused; its staff may read.", "Ask an operator."),
    "not_found": Words("NotFound", "It does not exist, or is not visible to the caller.", "-"),
    "payloads_not_encrypted": Words(
        "NotFound", "Nothing can be decoded, for `PAYLOAD_KEYS` is not set.", "Set it, or leave the codec out."
    ),
    "conflict": Words("Conflict", "Default of the class; every conflict raised today has a code of its own.", "-"),
    "slug_taken": Words("Conflict", "A tenant has or had this slug.", "Choose another slug."),
    "domain_taken": Words("Conflict", "Another tenant holds the domain named in `domain`.", "Choose another domain."),
    "partner_limit": Words("Conflict", "The partner's limit of tenants or seats is reached.", "Ask an operator."),
    "step_not_parked": Words(
        "Conflict", "The step does not wait for a decision, or one is on its way.", "See its state."
    ),
    "not_cancelable": Words("Conflict", "The outcome of the operation stands.", "-"),
    "too_large": Words("TooLarge", "The body is larger than `MAX_BODY_BYTES`.", _FIX),
    "unsupported_media_type": Words(
        "UnsupportedMedia", "The `Content-Type` is not `application/json`, or the body is compressed.", _FIX
    ),
    "invalid": Words("Invalid", "Fields or query parameters are wrong; `errors` names each.", _FIX),
    "idempotency_key_reused": Words("Invalid", "The key was used with another payload.", "Use a new key."),
    "internal_error": Words(
        "ControlPlaneError", "A bug; in a step as well, where it is retried.", "Report it with the `requestId`."
    ),
    "unavailable": Words("Unavailable", "Default of the class; each case today has its own code.", "Retry."),
    "database_unavailable": Words("Unavailable", "MongoDB cannot be reached; in a step as well.", "Retry."),
    "database_busy": Words("Unavailable", "A transaction did not commit within 20 s.", "Retry."),
    "temporal_unavailable": Words("Unavailable", "Readiness: Temporal does not answer.", "Retry."),
    "too_many_watchers": Words("Unavailable", "The process sends as many event streams as it can.", "Retry."),
    "issuer_unavailable": Words("Unavailable", "The issuer's keys cannot be fetched and none are known.", "Retry."),
    "operation_closed": Words("OperationClosed", "An attempt came after its operation ended.", "Nothing."),
    "operation_undoing": Words(
        "OperationUndoing",
        "An attempt came while its operation is undone: its run was reset.",
        "Nothing: it is undone.",
    ),
    "attempt_outdated": Words("AttemptOutdated", "An attempt came after a newer one of its step.", "Nothing."),
    "resource_changed": Words(
        "ResourceChanged", "An attempt chose an object after another attempt had recorded one.", "Nothing."
    ),
    "vendor_error": Words("VendorError", "Default of the class; not raised as such.", "-"),
    "vendor_unavailable": Words("VendorUnavailable", "Refused, 5xx, no or an unreadable answer to a read.", _WAIT),
    "vendor_warming_up": Words(
        "VendorUnavailable",
        "OCIS answered 401: it does so to good credentials in its first minute.",
        f"{_WAIT} After a minute of nothing else it is `vendor_auth_failed`.",
    ),
    "vendor_rate_limited": Words("VendorRateLimited", "The vendor asks to slow down.", _WAIT),
    "not_ready_yet": Words("NotReadyYet", "A poll has not seen the end yet; no error.", _WAIT),
    "outcome_unknown": Words(
        "OutcomeUnknown", "A write was sent and its answer lost.", "Nothing: the next attempt observes first."
    ),
    "vendor_auth_failed": Words(
        "VendorAuthFailed",
        "Our credential is refused.",
        "Operator: [renew it](../runbooks/credential-refused.md); the step is then tried again by itself.",
    ),
    "vendor_breaker_open": Words(
        "BreakerOpen",
        "Nothing was sent, because the vendor refused our credential before.",
        "As for `vendor_auth_failed`.",
    ),
    "vendor_rejected": Words("VendorRejected", "The vendor refuses for good.", _LOOK),
    "vendor_forbidden": Words(
        "VendorRejected", "Our account lacks a permission.", "Operator: grant it in the vendor's system."
    ),
    "vendor_not_found": Words("VendorRejected", "What a call names is not there.", _LOOK),
    "already_exists": Words("VendorRejected", "A unique name is taken; steps read again and compare marks.", _LOOK),
    "generation_mismatch": Words(
        "VendorRejected", "Stalwart has no JMAP management interface.", "Run a supported version of Stalwart."
    ),
    "stalwart_not_found": Words("VendorRejected", "The domain whose zone is read is gone.", _LOOK),
    "idempotency_conflict": Words("VendorRejected", "Stripe: the key was used with other parameters.", _LOOK),
    "foreign_object": Words(
        "ForeignObject", "A name we need belongs to an object without our mark.", "Operator: rename or remove it."
    ),
    "identity_exists": Words(
        "IdentityExists", "The login name belongs to an identity not linked to the person.", _LOOK
    ),
    "domain_gone": Words("VendorRejected", "The domain of a step is not on the tenant any more.", _LOOK),
    "user_gone": Words("VendorRejected", "The identity linked to the person is gone from Authentik.", _LOOK),
    "user_role_missing": Words("VendorRejected", "Stalwart's built-in role `User` is gone.", "Operator: restore it."),
    "space_not_empty": Words(
        "VendorRejected",
        "A tenant's space that is to be removed has files in it.",
        "Operator: decide about the files, empty or remove the space, then retry.",
    ),
    "still_in_use": Words(
        "VendorRejected",
        "What is to be removed is used by something else: a mailbox or list in a domain, an account with a role, a "
        "subscription of a customer.",
        "Operator: remove that in the vendor's system, then retry.",
    ),
    "budget_spent": Words(
        "Failure",
        "The time budget ended without a recorded error; otherwise the last attempt's code stands.",
        "Operator: see why no attempt ended, for example a worker that was away.",
    ),
    "attempt_lost": Words(
        "Failure",
        "A step's last attempt ended without a record, and nothing tried it again.",
        "Look in the outside system for what it had done.",
    ),
    "canceled": Words(
        "Failure", "The job was canceled while the step was under way, and nothing is undone of it.", "-"
    ),
    "cleanup_incomplete": Words(
        "Failure",
        "The job was canceled, and an operator skipped the removal of something it had made.",
        "Remove what the message names in the outside system.",
    ),
    "ended_outside": Words(
        "Failure", "The execution ended in Temporal without closing its operation.", "See who ended it, and why."
    ),
}


class Drift(Exception):
    """Code and words do not fit together."""


def environment_names() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting by the name of its environment variable."""
    for name, info in Settings.model_fields.items():
        group = info.annotation
        if isinstance(group, type) and issubclass(group, BaseSettings):
            prefix = group.model_config.get("env_prefix", "")
            for inner, each in group.model_fields.items():
                yield f"{prefix}{inner}".upper(), each
        else:
            yield name.upper(), info


def settings_table() -> str:
    """Return the table of all settings."""
    names = dict(environment_names())
    _compare("settings", set(names), set(SETTINGS), "SETTINGS")
    rows = [f"| `{name}` | {_values(info)} | {_default(info)} | {SETTINGS[name]} |" for name, info in names.items()]
    return "\n".join(["| name | values | default | meaning |", "|---|---|---|---|", *rows])


def error_classes() -> dict[str, type[ControlPlaneError]]:
    """Return every error class by name."""
    found = vars(errors).values()
    return {each.__name__: each for each in found if isinstance(each, type) and issubclass(each, ControlPlaneError)}


def codes_in_source() -> dict[str, set[str]]:
    """Return every code that stands in the source, with the error classes it was seen to be passed to."""
    seen: dict[str, set[str]] = defaultdict(set)
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                for code, raised_as in _codes_of(node):
                    seen[code] |= {raised_as} & set(error_classes())
    for name, each in error_classes().items():
        seen[each.default_code] |= {name}
    for code in OUR_WORDS:
        seen[code] |= set()
    return dict(seen)


def api_codes_table() -> str:
    """Return the table of codes that the API answers with."""
    _check_codes()
    rows = [
        f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {words.when} | {words.do} |"
        for code, words, kind in _known()
        if kind is not None and not issubclass(kind, VendorError | errors.OperationClosed)
    ]
    return "\n".join(["| code | status | retryable | when | what to do |", "|---|---|---|---|---|", *rows])


def operation_codes_table() -> str:
    """Return the table of codes that stand on steps and operations."""
    _check_codes()
    rows = [
        f"| `{code}` | {'recorded' if kind is None else f'`{kind.__name__}`'} | "
        f"{'yes' if kind is not None and kind.retryable else 'no'} | {words.when} | {words.do} |"
        for code, words, kind in _known()
        if kind is None or issubclass(kind, VendorError | errors.OperationClosed)
    ]
    return "\n".join(["| code | raised as | retried | when | what to do |", "|---|---|---|---|---|", *rows])


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("settings.md", settings_table),
    "API codes": ("error-codes.md", api_codes_table),
    "operation codes": ("error-codes.md", operation_codes_table),
}


def render(page: str, text: str) -> str:
    """Return the text of a page with its tables as the code says."""
    for name, (home, table) in TABLES.items():
        if home == page:
            begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
            if begin not in text or end not in text:
                raise Drift(f"docs/reference/{page} lacks the markers of the table {name!r}")
            before, rest = text.split(begin, 1)
            text = f"{before}{begin}\n{table()}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def _codes_of(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Call(func=function, keywords=keywords):
            name = function.id if isinstance(function, ast.Name) else ""
            for keyword in keywords:
                if keyword.arg == "code":
                    yield from ((code, name) for code in _strings(keyword.value))
        case ast.FunctionDef(args=arguments):
            for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
                if argument.arg == "code" and default is not None:
                    yield from ((code, "") for code in _strings(default))
        case ast.Assign(targets=[ast.Name(id="code" | "rejection")], value=value):
            yield from ((code, "") for code in _strings(value))
        case ast.AnnAssign(target=ast.Name(id="_CODES"), value=ast.Dict(values=values)):
            yield from ((code, "") for value in values for code in _strings(value))
        case _:
            pass


def _strings(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)) if re.fullmatch(r"[a-z][a-z_]+", text):
            yield text
        case ast.IfExp(body=body, orelse=otherwise):
            yield from _strings(body)
            yield from _strings(otherwise)
        case _:
            pass


def _known() -> Iterator[tuple[str, Words, type[ControlPlaneError] | None]]:
    classes = error_classes()
    for code, words in CODES.items():
        yield code, words, classes.get(words.raised_as)


def _check_codes() -> None:
    seen = codes_in_source()
    _compare("error codes", set(seen), set(CODES), "CODES")
    for code, words, kind in _known():
        if kind is None and words.raised_as != "Failure":
            raise Drift(f"CODES says that {code!r} is raised as {words.raised_as}, which is no error class")
        if seen[code] and words.raised_as not in seen[code]:
            raise Drift(f"CODES says that {code!r} is raised as {words.raised_as}; the source: {sorted(seen[code])}")


def _compare(what: str, real: set[str], described: set[str], where: str) -> None:
    if missing := sorted(real - described):
        raise Drift(f"{what} without words: {', '.join(missing)}; add them to {where} in {Path(__file__).name}")
    if gone := sorted(described - real):
        raise Drift(f"{what} that the code does not have: {', '.join(gone)}; remove them from {where}")


def _values(info: FieldInfo) -> str:
    return _type(info.annotation)


def _type(annotation: object) -> str:
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(_type(each) for each in arguments if each is not type(None))
    if origin is list:
        return "list"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{each.value}`" for each in annotation)
    names = {str: "text", int: "integer", float: "number", bool: "`true`, `false`", SecretStr: "secret"}
    if isinstance(annotation, type) and annotation in names:
        return names[annotation]
    raise Drift(f"no words for the type {annotation!r}")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "absent"
    if value == []:
        return "empty"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    """Write the tables into the pages."""
    for page in sorted({home for home, _table in TABLES.values()}):
        path = REFERENCE / page
        path.write_text(render(page, path.read_text()))


if __name__ == "__main__":
    main()
