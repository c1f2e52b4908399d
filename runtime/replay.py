"""Histories of runs: in clear, as stored files, and replayed against the code of today."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType, TaskQueueKind
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import Replayer, WorkflowRunner

from runtime.codec import ENCODING, build_data_converter
from runtime.key_ring import CannotOpen

HOW_TO = "docs/how-to/change-a-workflow.md"
GATE = f'Gate the change with workflow.patched("...") so that runs which began before it go on as they began: {HOW_TO}'
KEEP = f"Keep the workflow, under its name, until no run of it is open: {HOW_TO}"
MEND = f"An open run would stand still at this error until the code is mended: {HOW_TO}"

# What the SDK's core says of a command that does not fit, in our words. It gives no codes, only these sentences.
# Source: temporalio 1.35, seen by replaying changed workflows.
_INSTEAD = (
    (r"No command scheduled for event", "issues no command", GATE),
    (r"Activity type of .* activity command '(.*)'", "starts the activity {}", GATE),
    (r"Activity id of .* activity command '(.*)'", "starts an activity with the id {}", GATE),
    (r"Child workflow type of .* command '(.*)'", "starts the child workflow {}", GATE),
    (r"Child workflow id of .* command '(.*)'", "starts a child workflow with the id {}", GATE),
    (r"Non-deprecated patch marker encountered for change (.*), but", 'never asks workflow.patched("{}")', GATE),
    (r"Nondeterminism error: (.*?) ?[mM]achine does not handle", "issues a command of the kind {!r}", GATE),
)
_LONGEST_TEXT = 300


@dataclass(frozen=True)
class Mismatch:
    """Where a run and the code of today part."""

    event_id: int
    recorded: str
    instead: str
    advice: str

    def __str__(self) -> str:
        return f"At event {self.event_id} the run has {self.recorded}, but the code {self.instead}.\n{self.advice}"


@dataclass(frozen=True)
class Verdict:
    """Whether the code of today can take over a run."""

    workflow_type: str
    events: int
    mismatch: Mismatch | None = None

    @property
    def fits(self) -> bool:
        """Whether it can."""
        return self.mismatch is None

    def __str__(self) -> str:
        line = f"{self.workflow_type}, {self.events} events: {'fits' if self.fits else 'does not fit'}"
        return line if self.mismatch is None else f"{line}\n{self.mismatch}"


class ReplayGate:
    """Says whether the code of today can take over runs that began with older code."""

    def __init__(self, workflows: Sequence[type], runner: WorkflowRunner) -> None:
        """Take the workflows and the sandbox of the worker; histories come in clear, so no keys are needed."""
        # The SDK has no public way to a workflow's name.
        self._known = {workflow._Definition.must_from_class(each).name for each in workflows}  # noqa: SLF001
        self._replayer = Replayer(
            workflows=workflows,
            workflow_runner=runner,
            data_converter=build_data_converter(None),
            runtime=_silent_runtime(),
        )

    async def check(self, history: WorkflowHistory) -> Verdict:
        """Run the code on a history, and say whether it issues the same commands.

        Raises:
            ValueError: the history does not begin with the start of a workflow, or has not each event once, in order.
        """
        if not history.events or not history.events[0].HasField("workflow_execution_started_event_attributes"):
            raise ValueError("it does not begin with the start of a workflow")
        for place, event in enumerate(history.events, start=1):
            # The SDK takes some damaged histories for ones that fit, and others for ones that do not.
            if event.event_id != place:
                raise ValueError(f"it is damaged: event {event.event_id} stands where event {place} should")
        workflow_type = history.events[0].workflow_execution_started_event_attributes.workflow_type.name
        return Verdict(workflow_type, len(history.events), await self._mismatch(history, workflow_type))

    async def _mismatch(self, history: WorkflowHistory, workflow_type: str) -> Mismatch | None:
        if workflow_type not in self._known:
            return Mismatch(1, f"the start of {workflow_type}", "has no such workflow", KEEP)
        begun = _first_task(history.events)
        # Nothing was decided yet; and the SDK would wait for ever for the first task.
        if begun is None:
            return None
        failure = await self._failure(history, len(history.events))
        if failure is None:
            return None
        event = await self._where_they_part(history, begun)
        instead, advice = _instead(str(failure))
        return Mismatch(event.event_id, _name(event), instead, advice)

    async def _where_they_part(self, history: WorkflowHistory, begun: int) -> HistoryEvent:
        """Return the first event that the code cannot explain, by halving: what contains it fails, what does not fits.

        The SDK names the event in some of its messages only.
        """
        fits, fails = begun - 1, len(history.events)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if await self._failure(history, middle) is None:
                fits = middle
            else:
                fails = middle
        return history.events[fails - 1]

    async def _failure(self, history: WorkflowHistory, count: int) -> Exception | None:
        beginning = WorkflowHistory(history.workflow_id, history.events[:count])
        return (await self._replayer.replay_workflow(beginning, raise_on_replay_failure=False)).replay_failure


@functools.cache
def _silent_runtime() -> Runtime:
    """Return an SDK runtime without a log: its core would write whole events, payloads included, to stderr."""
    return Runtime(telemetry=TelemetryConfig(logging=None))


def _first_task(events: Sequence[HistoryEvent]) -> int | None:
    """Return how many events there are up to the start of the first workflow task."""
    started = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
    return next((count for count, event in enumerate(events, start=1) if event.event_type == started), None)


def _name(event: HistoryEvent) -> str:
    """Return what an event records, in a few words and without its payloads."""
    match event.event_type:
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            activity = event.activity_task_scheduled_event_attributes
            return f"the activity {activity.activity_type.name} with the id {activity.activity_id}"
        case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            child = event.start_child_workflow_execution_initiated_event_attributes
            return f"the child workflow {child.workflow_type.name} with the id {child.workflow_id}"
        case EventType.EVENT_TYPE_MARKER_RECORDED:
            marker = event.marker_recorded_event_attributes
            data = [each.data.decode(errors="replace") for each in marker.details["patch-data"].payloads]
            return f"the marker {' '.join([marker.marker_name, *data])}"
        case other:
            return EventType.Name(other).removeprefix("EVENT_TYPE_")


def _instead(failure: str) -> tuple[str, str]:
    """Return what the code did, and what to do about it."""
    # The failure is written by the core as a Rust value, outermost message first, outermost type last.
    text = _written(re.findall(r'message: "((?:[^"\\]|\\.)*)"', failure)[:1]) or failure
    for pattern, words, advice in _INSTEAD:
        found = re.search(pattern, text)
        if found is not None:
            return words.format(*found.groups()), advice
    kind = _written(re.findall(r'r#type: "((?:[^"\\]|\\.)*)"', failure)[-1:])
    # An event that is written out holds its payloads.
    return f"fails: {kind} {text.partition('HistoryEvent {')[0][:_LONGEST_TEXT]}".rstrip(), MEND


def _written(found: list[str]) -> str:
    return "".join(found).replace('\\"', '"').replace("\\n", " ")


async def in_clear(history: WorkflowHistory, converter: DataConverter) -> WorkflowHistory:
    """Return a history whose payloads and failures can be read without keys.

    Raises:
        CannotOpen: it is encrypted with a key that the converter lacks.
    """
    clear = History(events=history.events)
    for payload in [each for each in _parts(clear) if isinstance(each, Payload)]:
        if converter.payload_codec is not None:
            payload.CopyFrom((await converter.payload_codec.decode([payload]))[0])
        if payload.metadata.get("encoding") == ENCODING:
            raise CannotOpen("It is encrypted, and no PAYLOAD_KEYS are given.")
    for failure in [each for each in _parts(clear) if isinstance(each, Failure)]:
        if failure.HasField("encoded_attributes"):
            failure.message = json.loads(failure.encoded_attributes.data)["message"]
            failure.ClearField("encoded_attributes")
    return WorkflowHistory(history.workflow_id, clear.events)


def to_stored(history: WorkflowHistory) -> str:
    """Return a history as JSON for a file: without stack traces and machines, which mean nothing to a replay."""
    kept = History(events=history.events)
    for part in list(_parts(kept)):
        if isinstance(part, Failure):
            part.ClearField("stack_trace")
        elif isinstance(part, TaskQueue) and part.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY:
            part.name = "sticky"
        if getattr(part, "identity", ""):
            part.identity = "worker"  # type: ignore[attr-defined]
    return json.dumps(WorkflowHistory(history.workflow_id, kept.events).to_json_dict(), indent=1) + "\n"


def _parts(message: Message) -> Iterator[Message]:
    """Yield a message and every message in it."""
    yield message
    for _field, value in message.ListFields():
        match value:
            case Message():
                inner = [value]
            case Mapping():
                inner = list(value.values())
            case Sequence():
                inner = list(value)
            case _:
                continue
        for each in inner:
            if isinstance(each, Message):
                yield from _parts(each)
