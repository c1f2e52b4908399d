"""Authentik: who may log in, and the groups they are in."""

from integrations.authentik.client import AuthentikClient
from integrations.authentik.models import Group, User, UserSpec

__all__ = ["AuthentikClient", "Group", "User", "UserSpec"]
