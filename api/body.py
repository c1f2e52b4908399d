"""Reads a JSON body after the caller has been authorised, so that strangers learn nothing from its errors."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Generic, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from api.access import Caller
from api.errors import field_errors
from api.reference import SCHEMA_REF
from domain.errors import Invalid, Malformed, TooLarge, UnsupportedMedia
from store.idempotency import IdempotentRequest


class Payload(BaseModel):
    """The base of request bodies: camelCase, and unknown fields are refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


B = TypeVar("B", bound=Payload)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class JsonBody(Generic[B]):
    """Reads and validates the body of a route.

    To be called by the route after its guard: as a dependency FastAPI would parse the body before it knows the caller.
    """

    def __init__(self, model: type[B], *, max_bytes: int | None = None, required: bool = True) -> None:
        """Read bodies of a model, of at most the size given, else of that in the settings.

        Args:
            required: an empty body is the model's defaults if it is not.
        """
        self.model = model
        self._max_bytes = max_bytes
        self._required = required

    @property
    def openapi(self) -> dict[str, Any]:
        """Return what a route passes as `openapi_extra`; `api.reference` makes components of its `$defs`."""
        schema = self.model.model_json_schema(ref_template=SCHEMA_REF)
        return {"requestBody": {"required": self._required, "content": {"application/json": {"schema": schema}}}}

    async def read(self, request: Request) -> B:
        """Return the body as its model.

        Raises:
            UnsupportedMedia: it is not declared as JSON.
            TooLarge: it is larger than the API reads.
            Malformed: it is not JSON.
            Invalid: a field is wrong; `errors` says which.
        """
        limit: int = self._max_bytes or request.app.state.settings.max_body_bytes
        _refuse_declared_size(request, limit)
        content = await _content(request, limit)
        if not content and not self._required:
            return self.model()
        _refuse_other_media(request)
        try:
            document = json.loads(
                content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_names
            )
        except (ValueError, RecursionError):
            raise Malformed("The body is not JSON in UTF-8, or names a field twice.") from None
        try:
            return self.model.model_validate(document)
        except ValidationError as error:
            errors = field_errors([_in_our_words(each) for each in error.errors(include_url=False)])
            raise Invalid("The request is not valid.", errors=errors) from None


def idempotency_key(request: Request) -> str | None:
    """Return the request's Idempotency-Key, None if it has none.

    Raises:
        Malformed: the key is empty, too long or not printable.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise Malformed("The Idempotency-Key must be 1 to 255 printable characters.", code="idempotency_key_malformed")
    return key


def idempotent_request(request: Request, caller: Caller, key: str, body: Payload) -> IdempotentRequest:
    """Return a request that may be repeated under its key, with its scope and its fingerprint."""
    content = json.dumps(body.model_dump(mode="json", by_alias=True), sort_keys=True)
    fingerprint = hashlib.sha256(f"{request.url.query}\n{content}".encode()).hexdigest()
    return IdempotentRequest(
        key=key, subject=caller.user.id, method=request.method, path=request.url.path, fingerprint=fingerprint
    )


async def _content(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _refuse_declared_size(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)


def _refuse_other_media(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMedia("The body must be application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia("The body must not be compressed.")


def _in_our_words(error: ErrorDetails) -> ErrorDetails:
    if error["type"] != "model_type":
        return error
    # Pydantic's sentence names our class.
    return {**error, "msg": f"{'This' if error['loc'] else 'The body'} must be a JSON object."}


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands twice")
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
