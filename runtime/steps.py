"""What an activity may know and say about the step it carries out."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from domain.operations import Acting


class StepContext(Protocol):
    """The step of the running activity. The interceptor provides it; tests provide their own."""

    @property
    def operation_id(self) -> str:
        """The operation the step belongs to: the mark on what it creates."""

    @property
    def idempotency_key(self) -> str:
        """The key for the step's one vendor write."""

    async def acting(self, acting: Acting) -> None:
        """Record what is about to be changed outside; to be awaited before the write.

        Whichever attempt ends the step then writes the audit event, so a crash in between loses none.

        Raises:
            OperationClosed: the operation has ended: nothing may be written.
        """

    async def not_acting(self) -> None:
        """Say that nothing was changed after all: the vendor left it as it was."""

    async def seen_absent(self) -> None:
        """Say that the object was looked for and is not there.

        After an error that the vendor replayed from its idempotency store, this makes the next write use a new key;
        the old one would get the stored error for ever.
        """


_current: ContextVar[StepContext] = ContextVar("current_step")


def current_step() -> StepContext:
    """Return the step of the running activity.

    Raises:
        LookupError: the activity is not run as a step.
    """
    return _current.get()


def enter_step(context: StepContext) -> None:
    """Make a step the current one of this task."""
    _current.set(context)
