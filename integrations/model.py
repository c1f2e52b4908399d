"""The base of what clients take and return."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class VendorModel(BaseModel):
    """A frozen model that reads a vendor's names and our own, and ignores what it does not know.

    Vendors add fields with every release; a new one must not stop us.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=True)
