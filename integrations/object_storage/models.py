"""What is known of a stored object."""

from __future__ import annotations

from datetime import datetime

from integrations.model import VendorModel


class StoredObject(VendorModel):
    """An object without its content. Units: `size` in bytes."""

    key: str
    size: int
    modified_at: datetime
