"""The JMAP envelope: a request of several method calls that may refer to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandbox.stalwart.errors import JMAP_ERROR, MethodError, RequestError
from sandbox.stalwart.registry import Registry
from sandbox.state import Document

MANAGEMENT = "urn:stalwart:jmap"
CORE = "urn:ietf:params:jmap:core"
CAPABILITIES = (CORE, MANAGEMENT, "urn:ietf:params:jmap:mail", "urn:ietf:params:jmap:submission")
MAX_CALLS = 16
MAX_SIZE = 10_000_000
SESSION_STATE = "3e25b2a0"


class Processor:
    """Runs requests against the management objects."""

    def __init__(self, registries: Mapping[str, Registry], account_id: str) -> None:
        """Take the registries by kind, for example `x:Domain`."""
        self._registries = registries
        self._account_id = account_id

    def run(self, body: bytes) -> Document:
        """Return the response object, or raise RequestError if the request is none."""
        request = parse(body)
        created: dict[str, str] = dict(request.get("createdIds", {}))
        responses: list[list[Any]] = []
        for name, arguments, call_id in request["methodCalls"]:
            try:
                if MANAGEMENT not in request["using"]:
                    raise MethodError("unknownMethod")
                answer = self._call(name, with_results(arguments, responses), created)
                responses.append([name, answer, call_id])
            except MethodError as error:
                responses.append(["error", error.body, call_id])
        response: Document = {"methodResponses": responses, "sessionState": SESSION_STATE}
        return {**response, "createdIds": created} if "createdIds" in request else response

    def _call(self, name: str, arguments: Document, created: dict[str, str]) -> Document:
        kind, _, verb = name.partition("/")
        registry = self._registries.get(kind)
        if registry is None:
            raise MethodError("unknownMethod")
        if arguments.get("accountId", self._account_id) != self._account_id:
            raise MethodError("accountNotFound")

        def resolve(value: Any) -> Any:
            return with_created(value, created)

        match verb:
            case "get":
                return registry.get(arguments, resolve)
            case "query":
                return registry.query(arguments, resolve)
            case "set":
                return registry.set(arguments, resolve, created.__setitem__)
            case _:
                raise MethodError("unknownMethod")


def parse(body: bytes) -> Document:
    """Return a request object whose calls have the form `[name, arguments, call id]`."""
    if len(body) > MAX_SIZE:
        raise _refused("limit", "The request is too large.", limit="maxSizeRequest")
    try:
        request = json.loads(body)
    except ValueError as error:
        raise _refused("notJSON", "The request is not JSON.") from error
    if not isinstance(request, dict) or not all(
        isinstance(request.get(name), list) for name in ("using", "methodCalls")
    ):
        raise _refused("notRequest", "A request has the members using and methodCalls.")
    if not isinstance(request.get("createdIds", {}), dict):
        raise _refused("notRequest", "createdIds is an object.")
    for capability in request["using"]:
        if capability not in CAPABILITIES:
            raise _refused("unknownCapability", f"Unknown capability {capability}.")
    if len(request["methodCalls"]) > MAX_CALLS:
        raise _refused("limit", "The request has too many calls.", limit="maxCallsInRequest")
    for call in request["methodCalls"]:
        match call:
            case [str(), dict(), str()]:
                pass
            case _:
                raise _refused("notRequest", "A method call is [name, arguments, call id].")
    return request


def with_results(arguments: Document, responses: list[list[Any]]) -> Document:
    """Return the arguments with `#name` members replaced by parts of earlier answers."""
    resolved = {}
    for name, value in arguments.items():
        if not name.startswith("#"):
            resolved[name] = value
            continue
        if name[1:] in arguments:
            raise MethodError("invalidArguments", f"Both {name[1:]} and {name} are given")
        resolved[name[1:]] = _result(value, responses)
    return resolved


def with_created(value: Any, created: Mapping[str, str]) -> Any:
    """Return the value with every `#id` of an object created in this request replaced.

    A reference can be a value, a member of a set (a key) or the last part of a patch's pointer (within a key).
    """
    match value:
        case str():
            return "/".join(_id_of(part, created) for part in value.split("/")) if "#" in value else value
        case dict():
            return {with_created(key, created): with_created(member, created) for key, member in value.items()}
        case list():
            return [with_created(member, created) for member in value]
        case _:
            return value


def _id_of(part: str, created: Mapping[str, str]) -> str:
    return created.get(part[1:], part) if part.startswith("#") else part


def _result(reference: Any, responses: list[list[Any]]) -> Any:
    match reference:
        case {"resultOf": str(call_id), "name": str(name), "path": str(path)}:
            for found, answer, of_call in responses:
                if of_call == call_id and found == name:
                    return _at(answer, path.removeprefix("/").split("/"))
    raise MethodError("invalidResultReference")


def _at(value: Any, path: list[str]) -> Any:
    for position, part in enumerate(path):
        if part == "*" and isinstance(value, list):
            members = [_at(member, path[position + 1 :]) for member in value]
            # A star over lists gives one flat list.
            return [entry for member in members for entry in (member if isinstance(member, list) else [member])]
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise MethodError("invalidResultReference") from error
    return value


def _refused(error: str, detail: str, **members: str) -> RequestError:
    return RequestError(400, detail, kind=f"{JMAP_ERROR}{error}", **members)
