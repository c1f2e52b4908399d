"""Watching a provision from outside, while what it comes through is killed and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.support.platform import Platform, eventually, order
from tests.support.sse import Event, EventReader

pytestmark = pytest.mark.e2e

HELD = {
    "authentik": "authentik.group",
    "stalwart": "stalwart.role",
    "ocis": "ocis.space",
    "stripe": "stripe.customer",
}


class Stream:
    """What one connection brings."""

    def __init__(self, response: httpx.Response) -> None:
        self._reader = EventReader()
        self._lines = response.iter_lines()

    def until(self, enough: Callable[[Event], bool]) -> list[Event]:
        """Return the next events up to the first that is enough."""
        seen = []
        for line in self._lines:
            event = self._reader.feed(line)
            if event is not None:
                seen.append(event)
                if enough(event):
                    return seen
        raise AssertionError(f"the stream has ended after {[event.id for event in seen]}")

    def rest(self) -> list[Event]:
        """Return everything up to the end of the stream."""
        return [event for line in self._lines if (event := self._reader.feed(line)) is not None]


@contextlib.contextmanager
def watching(platform: Platform, operation_id: str, after: int | None = None) -> Iterator[Stream]:
    """Watch an operation over one connection."""
    headers = {"Last-Event-ID": str(after)} if after is not None else {}
    with platform.api() as http, http.stream("GET", f"/operations/{operation_id}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)


def _submit(platform: Platform, slug: str) -> str:
    with platform.api() as http:
        answer = http.post("/tenants", json=order(slug))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def _hold(platform: Platform, slug: str, vendor: str) -> str:
    return platform.inject(vendor, "hold_after", method="POST", contains=[f"tenant/{slug}/", f"/{HELD[vendor]}."])


def _states(event: Event) -> dict[str, str]:
    return {step["name"]: step["state"] for step in event.data["steps"]}


def _answers(platform: Platform) -> bool:
    try:
        with platform.api() as http:
            return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_a_provision_is_seen_whole_over_four_connections(platform: Platform) -> None:
    """Left, come back to, cut off by a kill of the API: revisions rise, none comes twice, and the end is seen."""
    slug = "live-reconnects"
    held = {vendor: _hold(platform, slug, vendor) for vendor in HELD}
    operation_id = _submit(platform, slug)
    with watching(platform, operation_id) as stream:
        seen = stream.until(lambda event: {_states(event).get(step) for step in HELD.values()} == {"running"})
    platform.release("authentik", held["authentik"])
    with watching(platform, operation_id, after=seen[-1].id) as stream:
        seen += stream.until(lambda event: _states(event)["authentik.member"] == "done")
    with watching(platform, operation_id, after=seen[-1].id) as stream:
        platform.release("stalwart", held["stalwart"])
        seen += stream.until(lambda event: _states(event)["stalwart.role"] == "done")
        platform.kill("api")
        with contextlib.suppress(httpx.TransportError):
            seen += stream.rest()
    assert seen[-1].data["closedAt"] is None
    eventually("the API is back", lambda: _answers(platform))
    with watching(platform, operation_id, after=seen[-1].id) as stream:
        platform.release("ocis", held["ocis"])
        platform.release("stripe", held["stripe"])
        seen += stream.rest()
    ids = [event.id for event in seen]
    assert ids == sorted(set(ids))
    assert all(event.data["revision"] == event.id for event in seen)
    assert seen[-1].data["state"] == "completed"
    with platform.api() as http:
        assert http.get(f"/operations/{operation_id}").json() == seen[-1].data
        again = http.get(f"/operations/{operation_id}/events", headers={"Last-Event-ID": str(ids[-1])})
        assert again.status_code == 204


def test_a_stream_outlives_the_database(platform: Platform) -> None:
    """MongoDB is killed and comes back; over the same connection the end is seen."""
    slug = "live-mongo"
    fault = _hold(platform, slug, "ocis")
    operation_id = _submit(platform, slug)
    with watching(platform, operation_id) as stream:
        seen = stream.until(lambda event: _states(event).get("ocis.space") == "running")
        platform.kill("mongo")
        platform.release("ocis", fault)
        seen += stream.rest()
    ids = [event.id for event in seen]
    assert ids == sorted(set(ids))
    assert seen[-1].data["state"] == "completed"
    assert "live_operations_broken" not in platform.log("api")


def test_an_api_that_is_told_to_stop_lets_its_watchers_go(platform: Platform) -> None:
    """The stream ends properly instead of holding up the stop, and goes on at the next process."""
    slug = "live-stop"
    fault = _hold(platform, slug, "ocis")
    operation_id = _submit(platform, slug)
    with watching(platform, operation_id) as stream:
        seen = stream.until(lambda event: _states(event).get("ocis.space") == "running")
        logged = len(platform.log("api"))
        os.kill(platform.children()["api"], signal.SIGTERM)
        seen += stream.rest()
    eventually("the API is back", lambda: _answers(platform))
    said = platform.log("api")[logged:]
    assert "Shutting down" in said
    assert "timeout graceful shutdown exceeded" not in said
    platform.release("ocis", fault)
    with watching(platform, operation_id, after=seen[-1].id) as stream:
        seen += stream.rest()
    ids = [event.id for event in seen]
    assert ids == sorted(set(ids))
    assert seen[-1].data["state"] == "completed"
