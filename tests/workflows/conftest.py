"""Servers, one on which time passes at once, and workers whose activities follow a script."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from temporalio.testing import WorkflowEnvironment

from runtime.codec import build_data_converter
from sandbox.stack.layout import find_binary
from tests.support.keys import key_ring
from tests.workflows.script import Stage

TEST_SERVER = Path(sys.executable).parent / "temporal-test-server"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage() -> AsyncIterator[Stage]:
    """The stage of the whole run; its clock is one, so tests use it one after another."""
    environment = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(TEST_SERVER), data_converter=build_data_converter(key_ring("tests"))
    )
    async with environment, Stage(environment.client).working() as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def live_stage() -> AsyncIterator[Stage]:
    """A stage on a real server, where time passes as it does."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(key_ring("tests"))
    )
    async with environment, Stage(environment.client).working() as stage:
        yield stage
