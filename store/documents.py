"""How models become documents and documents become models again."""

from __future__ import annotations

from typing import Any, TypeVar

from domain.model import Model
from store.database import Document

M = TypeVar("M", bound=Model)


def to_document(model: Model) -> Document:
    """Return a model as MongoDB stores it: camelCase names, native times, enums as their values."""
    document = model.model_dump(by_alias=True)
    plain = _plain(document)
    assert isinstance(plain, dict)
    return plain


def from_document(model: type[M], document: Document | None) -> M | None:
    """Return the model of a document, None for None. Missing newer fields get their defaults."""
    return None if document is None else model.model_validate(document)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return str(value)
    return value
