"""What is read from and written to Authentik."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from integrations.model import VendorModel


class Group(VendorModel):
    """A group; its name is unique and case-sensitive."""

    pk: str
    name: str
    attributes: dict[str, Any]
    user_pks: tuple[int, ...] = Field(validation_alias="users")


class User(VendorModel):
    """A user; `username` is unique, `email` is neither unique nor verified."""

    pk: int
    subject: str = Field(validation_alias="uuid")
    username: str
    email: str
    name: str
    is_active: bool
    attributes: dict[str, Any]
    group_pks: tuple[str, ...] = Field(validation_alias="groups")


class UserSpec(VendorModel):
    """A user to be created; the username is the person's e-mail address in lower case."""

    username: str = Field(min_length=1, max_length=150)
    name: str
    email: str
    attributes: dict[str, Any]
    path: str = "dezky"
