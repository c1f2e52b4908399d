"""The base of every model that is stored, sent or handed to a workflow."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Immutable; camelCase outside, snake_case inside; ignores fields that a newer version added."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


def to_timestamp(value: datetime) -> datetime:
    """Return an aware time in UTC, cut to the millisecond as MongoDB keeps it."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.replace(microsecond=aware.microsecond // 1000 * 1000)


Timestamp = Annotated[datetime, AfterValidator(to_timestamp)]
"""An aware time in UTC, cut to the millisecond as MongoDB keeps it: what is read back equals what was written."""
