"""Encrypted payloads as an engineer meets them: in the server's file, with Temporal's own command line, in a replay."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from runtime.codec import build_data_converter
from runtime.key_ring import KeyRing
from sandbox.stack.layout import Files, find_binary
from sandbox.stack.stack import PAYLOAD_KEYS, TOKENS
from tests.support.clear_text import stored_by_server, strings_of
from tests.support.platform import Platform, eventually, order
from worker import WORKFLOWS, workflow_runner

pytestmark = pytest.mark.e2e

SLUG = "codec"
DOMAIN = f"{SLUG}.example"
EMAIL = f"admin@{DOMAIN}"
# What a vendor may say: its own words, with somebody's address in them.
WORDS = "vendor-words about"


@dataclass
class Job:
    """One provisioning with a retried step and a refused one, and its history as the server gives it."""

    operation: dict[str, Any]
    history: str

    @property
    def workflow_id(self) -> str:
        return str(self.operation["workflowId"])


def show(platform: Platform, workflow_id: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `temporal workflow show`."""
    address = ["--address", platform.facts["temporal"], "--workflow-id", workflow_id, "--output", "json"]
    command = [str(find_binary("temporal")), "workflow", "show", *address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def through_codec(platform: Platform, *authorization: str) -> list[str]:
    """Return the options that send payloads to the API."""
    auth = ["--codec-auth", *authorization] if authorization else []
    return ["--codec-endpoint", f"{platform.facts['api']}/codec", *auth]


@pytest.fixture(scope="module")
def job(platform: Platform) -> Job:
    """A job in whose course vendors said more than they should."""
    said = json.dumps({"error": {"code": "accessDenied", "message": f"{WORDS} {EMAIL}"}})
    group, space = [f"tenant/{SLUG}/", "/ocis.group."], [f"tenant/{SLUG}/", "/ocis.space."]
    answer = {"body": said, "content_type": "application/json"}
    platform.inject("ocis", "delay", delaySeconds=2, method="POST", contains=group)
    platform.inject("ocis", "status", times=1, status=503, method="POST", contains=space, **answer)
    platform.inject("ocis", "status", times=None, status=403, method="POST", contains=space, **answer)
    with platform.api() as http:
        operation_id = http.post("/tenants", json=order(SLUG)).raise_for_status().json()["id"]

    def refused() -> dict[str, Any] | None:
        with platform.api("operator") as http:
            operation: dict[str, Any] = http.get(f"/operations/{operation_id}").json()
        states = {step["name"]: step["state"] for step in operation["steps"]}
        under_way = {"running", "retrying"} & set(states.values())
        return operation if states.get("ocis.space") in ("failed", "parked") and not under_way else None

    operation = eventually("the space was refused, and nothing is under way", refused)
    (space,) = [each for each in operation["steps"] if each["name"] == "ocis.space"]
    assert WORDS in space["lastError"]["message"]
    assert space["attempts"] > 1
    shown = show(platform, operation["workflowId"])
    assert shown.returncode == 0, shown.stderr
    return Job(operation, shown.stdout)


def secrets(platform: Platform) -> Iterator[str]:
    yield from (WORDS, EMAIL, "admin@")
    yield from TOKENS.values()
    yield from (platform.token(role) for role in ("partner", "operator"))


def test_the_history_holds_nothing_in_clear(platform: Platform, job: Job) -> None:
    """No address, no secret, no vendor's word; the domain stands in the names of its steps, and nowhere else."""
    strings = list(strings_of(json.loads(job.history)))
    assert [secret for secret in secrets(platform) for _, text in strings if secret in text] == []
    assert {name for name, text in strings if DOMAIN in text} == {"activityId"}
    ids = {"workflowId", "activityId"}
    assert {name for name, text in strings if SLUG in text} <= ids | {"data"}
    (start,) = [event for event in json.loads(job.history)["events"] if event["eventId"] == "1"]
    searchable = start["workflowExecutionStartedEventAttributes"].pop("searchAttributes")
    assert f'"{SLUG}"' in {text for _, text in strings_of(searchable)}
    assert SLUG not in "".join(text for name, text in strings_of(start) if name not in ids)


def test_the_servers_file_holds_nothing_in_clear(platform: Platform, job: Job) -> None:
    """Whoever copies Temporal's database reads ids, and neither people nor what vendors said."""
    stored = stored_by_server(Files(platform.data_dir).temporal)
    assert job.workflow_id.encode() in stored
    assert [secret for secret in secrets(platform) if secret.encode() in stored] == []


def test_temporals_command_line_reads_it_with_an_operators_token(platform: Platform, job: Job) -> None:
    """Inputs and failures come back in clear."""
    shown = show(platform, job.workflow_id, *through_codec(platform, f"Bearer {platform.token('operator')}"))
    assert shown.returncode == 0, shown.stderr
    text = "\n".join(text for _, text in strings_of(json.loads(shown.stdout)))
    assert f'"tenantSlug":"{SLUG}"' in text
    assert f"{WORDS} {EMAIL}" in text
    assert "binary/encrypted" not in text


@pytest.mark.parametrize("role", ["partner", None])
def test_it_reads_nothing_without_one(platform: Platform, job: Job, role: str | None) -> None:
    """With a partner's token, or none, not one payload is decoded."""
    bearer = [f"Bearer {platform.token(role)}"] if role is not None else []
    shown = show(platform, job.workflow_id, "--command-timeout", "3s", *through_codec(platform, *bearer))
    assert shown.returncode != 0
    assert WORDS not in shown.stdout + shown.stderr
    assert "tenantSlug" not in shown.stdout + shown.stderr
    (start,) = [event for event in json.loads(job.history)["events"] if event["eventId"] == "1"]
    payloads = start["workflowExecutionStartedEventAttributes"]["input"]
    headers = {"Authorization": bearer[0]} if bearer else {}
    response = httpx.post(f"{platform.facts['api']}/codec/decode", json=payloads, headers=headers, trust_env=False)
    assert response.status_code == (403 if role is not None else 401)


async def test_both_forms_replay(platform: Platform, job: Job) -> None:
    """The history replays as it is stored with the keys, and as the command line decodes it without."""
    shown = show(platform, job.workflow_id, *through_codec(platform, f"Bearer {platform.token('operator')}"))
    for history, keys in ((job.history, KeyRing.parse(PAYLOAD_KEYS)), (shown.stdout, None)):
        replayer = Replayer(
            workflows=WORKFLOWS, workflow_runner=workflow_runner(), data_converter=build_data_converter(keys)
        )
        await replayer.replay_workflow(WorkflowHistory.from_json(job.workflow_id, history))


def test_the_web_ui_asks_the_api(platform: Platform) -> None:
    """The web UI is told the endpoint, and the API lets that web UI's origin ask."""
    endpoint = httpx.get(f"{platform.facts['temporalUi']}/api/v1/settings", trust_env=False).json()["Codec"]["Endpoint"]
    assert endpoint == f"{platform.facts['api']}/codec"
    asked = {"Origin": platform.facts["temporalUi"], "Access-Control-Request-Method": "POST"}
    granted = httpx.options(f"{endpoint}/decode", headers=asked, trust_env=False)
    assert granted.headers["Access-Control-Allow-Origin"] == platform.facts["temporalUi"]


def test_it_describes_a_run_that_fails(platform: Platform) -> None:
    """The cause of a step that fails over and over is read with an operator's token, though it has no details."""
    slug = "codec-failing"
    needles = [f"tenant/{slug}/", "/ocis.space."]
    fault = platform.inject("ocis", "status", status=503, method="POST", contains=needles, times=None)
    with platform.api() as http:
        operation = http.post("/tenants", json=order(slug)).json()
    with platform.api("operator") as http:
        path = f"/operations/{operation['id']}"

        def failing() -> dict[str, Any] | None:
            found: dict[str, Any] = http.get(path).json()
            steps = {step["name"]: step for step in found["steps"]}
            return found if steps.get("ocis.space", {"attempts": 0})["attempts"] >= 2 else None

        workflow = eventually("the step has failed", failing)["workflowId"]
    options = through_codec(platform, f"Bearer {platform.token('operator')}")
    described = platform.temporal("workflow", "describe", "--workflow-id", workflow, *options)
    platform.release("ocis", fault)
    assert described.returncode == 0, described.stderr
    assert "ensure_space" in described.stdout
    # It shows the opened attributes beside the words that stand in for them.
    assert "execute_activity" in described.stdout
    assert "binary/encrypted" not in described.stdout
