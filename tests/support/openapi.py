"""Holds what goes over the wire against a vendor's own OpenAPI document.

A `Contract` checks one exchange: path and method are declared, query parameters and body fields are declared and valid,
and the answer's status is declared and its body valid. `ContractTransport` does so for every exchange of a client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx
import jsonschema
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT4, DRAFT202012

CONTRACTS = Path(__file__).resolve().parents[3] / "shared" / "contracts"

_ROOT = "contract"
_FORM = "application/x-www-form-urlencoded"
_LEAVES: dict[str, Callable[[str], object]] = {
    "integer": int,
    "number": float,
    "boolean": {"true": True, "false": False}.__getitem__,
}


class ContractViolation(AssertionError):
    """Something on the wire is not what the vendor's document says."""


class Contract:
    """One vendor's document."""

    def __init__(
        self, file_name: str, *, undeclared: Collection[int] = (), also: Mapping[str, str] | None = None
    ) -> None:
        """Read a document.

        Args:
            file_name: in the folder of the contracts.
            undeclared: statuses that real servers send although the document lacks them, or with a body of their own.
            also: names of schemas that real servers also answer with, by `METHOD /path/{template}`.
        """
        self._also = dict(also or {})
        self._document = _load(CONTRACTS / file_name)
        self._undeclared = frozenset(undeclared)
        self._prefix = urlsplit(self._document.get("servers", [{"url": ""}])[0]["url"]).path.rstrip("/")
        # OpenAPI 3.0 builds on an early JSON Schema (boolean `exclusiveMinimum`), 3.1 on the 2020 one.
        modern = self._document["openapi"].startswith("3.1")
        self._validator = jsonschema.Draft202012Validator if modern else jsonschema.Draft4Validator
        resource = (DRAFT202012 if modern else DRAFT4).create_resource(self._document)
        self._registry: Registry[Any] = Registry().with_resource(_ROOT, resource)
        # The most literal path first: `/groups/delta` before `/groups/{id}`.
        self._paths = [
            (re.compile(re.sub(r"\\\{[^/]*?\\\}", "[^/]+", re.escape(path))), path)
            for path in sorted(self._document["paths"], key=lambda path: path.count("{"))
        ]

    def check(self, request: httpx.Request, response: httpx.Response) -> None:
        """Ensure that one exchange is as declared.

        Raises:
            ContractViolation: it is not; the message says where.
        """
        operation, where = self._operation(request)
        self._check_query(operation, request, where)
        # What a server refuses need not be a valid request: refusals are tested on purpose.
        if response.is_success:
            self._check_body(operation, request, where)
        self._check_answer(operation, response, where)

    def _operation(self, request: httpx.Request) -> tuple[dict[str, Any], str]:
        path = unquote(request.url.raw_path.decode().partition("?")[0])
        if not path.startswith(self._prefix):
            raise ContractViolation(f"{path} is not below {self._prefix}")
        for pattern, template in self._paths:
            if pattern.fullmatch(path.removeprefix(self._prefix)):
                item = self._document["paths"][template]
                operation = item.get(request.method.lower())
                if operation is not None:
                    shared = item.get("parameters", [])
                    both = {**operation, "parameters": [*shared, *operation.get("parameters", [])]}
                    return both, f"{request.method} {template}"
        raise ContractViolation(f"{request.method} {path} is not declared")

    def _check_query(self, operation: dict[str, Any], request: httpx.Request, where: str) -> None:
        declared = {
            parameter["name"].removesuffix("[]"): parameter["schema"]
            for parameter in map(self._resolve, operation["parameters"])
            if parameter["in"] == "query"
        }
        for name, value in _nested(request.url.query.decode()).items():
            if name not in declared:
                raise ContractViolation(f"{where}: the query parameter {name} is not declared")
            self._validate(self._coerce(value, declared[name]), declared[name], f"{where}: query parameter {name}")

    def _check_body(self, operation: dict[str, Any], request: httpx.Request, where: str) -> None:
        content = self._resolve(operation.get("requestBody", {})).get("content", {})
        if not request.content:
            return
        media_type = request.headers["Content-Type"].partition(";")[0]
        if media_type not in content:
            raise ContractViolation(f"{where}: a body of type {media_type} is not declared")
        schema = content[media_type]["schema"]
        if media_type == _FORM:
            body = self._coerce(_nested(request.content.decode()), schema)
        else:
            body = json.loads(request.content)
        unknown = set(body) - set(self._property_names(schema))
        if unknown:
            raise ContractViolation(f"{where}: the fields {sorted(unknown)} are not declared")
        self._validate(body, schema, f"{where}: body")

    def _check_answer(self, operation: dict[str, Any], response: httpx.Response, where: str) -> None:
        status = response.status_code
        if status in self._undeclared:
            return
        responses = operation["responses"]
        declared = responses.get(str(status), responses.get("default"))
        if declared is None:
            raise ContractViolation(f"{where}: the status {status} is not declared")
        for media_type, media in self._resolve(declared).get("content", {}).items():
            if media_type.endswith("json") and "schema" in media:
                schema = media["schema"]
                if response.is_success and where in self._also:
                    schema = {"anyOf": [schema, {"$ref": f"#/components/schemas/{self._also[where]}"}]}
                self._validate(response.json(), schema, f"{where}: answer {status}")

    def _validate(self, value: object, schema: dict[str, Any], where: str) -> None:
        validator = self._validator(
            _rooted(schema), registry=self._registry, format_checker=self._validator.FORMAT_CHECKER
        )
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is not None:
            raise ContractViolation(f"{where}: {error.json_path}: {error.message[:500]}")

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        """Follow a reference inside the document."""
        while "$ref" in node:
            found: Any = self._document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            node = found
        return node

    def _property_names(self, schema: dict[str, Any]) -> Iterator[str]:
        schema = self._resolve(schema)
        yield from schema.get("properties", {})
        for part in _alternatives(schema):
            yield from self._property_names(part)

    def _coerce(self, value: Any, schema: dict[str, Any]) -> Any:
        """Turn the strings of a form or query into the types that the schema asks for, where they fit."""
        schema = self._resolve(schema)
        for part in _alternatives(schema):
            coerced = self._coerce(value, part)
            if self._validator(_rooted(part), registry=self._registry).is_valid(coerced):
                return coerced
        kind = schema.get("type")
        if kind == "array":
            rows = value.values() if isinstance(value, Mapping) else [value]
            return [self._coerce(row, schema.get("items", {})) for row in rows]
        if isinstance(value, Mapping):
            known, others = schema.get("properties", {}), schema.get("additionalProperties")
            rest = others if isinstance(others, dict) else {}
            return {name: self._coerce(part, known.get(name, rest)) for name, part in value.items()}
        try:
            return _LEAVES[kind](value) if kind in _LEAVES else value
        except (ValueError, KeyError):
            return value


class ContractTransport(httpx.AsyncBaseTransport):
    """Passes requests on and holds every exchange against the contract."""

    def __init__(self, inner: httpx.AsyncBaseTransport, contract: Contract) -> None:
        self._inner = inner
        self._contract = contract
        self.statuses: list[int] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; raise `ContractViolation` if it or its answer is not as declared."""
        await request.aread()
        response = await self._inner.handle_async_request(request)
        await response.aread()
        self._contract.check(request, response)
        self.statuses.append(response.status_code)
        return response

    async def aclose(self) -> None:
        """Close the transport below."""
        await self._inner.aclose()


@cache
def _load(path: Path) -> dict[str, Any]:
    text = path.read_text()
    document = json.loads(text) if path.suffix == ".json" else yaml.load(text, yaml.CSafeLoader)  # noqa: S506
    return dict(_with_null(document))


def _with_null(node: Any) -> Any:
    """Rewrite `nullable: true` of OpenAPI 3.0, which JSON Schema does not know, as "or null"."""
    if isinstance(node, list):
        return [_with_null(part) for part in node]
    if not isinstance(node, dict):
        return node
    rest = {name: _with_null(part) for name, part in node.items() if name != "nullable" or part is not True}
    return {"anyOf": [{"type": "null"}, rest]} if node.get("nullable") is True else rest


def _rooted(schema: Any) -> Any:
    """Let the references of a part of the document start at the document."""
    if isinstance(schema, list):
        return [_rooted(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _ROOT + part if name == "$ref" and isinstance(part, str) else _rooted(part)
        for name, part in schema.items()
    }


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for word in ("allOf", "anyOf", "oneOf") for part in schema.get(word, ())]


def _nested(encoded: str) -> dict[str, Any]:
    """Decode `a[b][0]=c` to `{"a": {"b": {"0": "c"}}}`."""
    tree: dict[str, Any] = {}
    for key, value in parse_qsl(encoded, keep_blank_values=True):
        name, *inner = re.findall(r"[^\[\]]+", key)
        level = tree
        for part in inner:
            level, name = level.setdefault(name, {}), part
        level[name] = value
    return tree
