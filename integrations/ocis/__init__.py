"""ownCloud Infinite Scale: groups, project spaces and who may use them."""

from integrations.ocis.client import OcisClient
from integrations.ocis.models import (
    SPACE_EDITOR,
    SPACE_MANAGER,
    SPACE_VIEWER,
    Group,
    Member,
    Space,
    SpaceSpec,
)

__all__ = [
    "SPACE_EDITOR",
    "SPACE_MANAGER",
    "SPACE_VIEWER",
    "Group",
    "Member",
    "OcisClient",
    "Space",
    "SpaceSpec",
]
