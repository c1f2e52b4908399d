"""One embedded stack for the tests that only use it, as a user would run it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.platform import Platform
from tests.support.servers import free_port_base


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A running platform."""
    with Platform(tmp_path_factory.mktemp("platform"), free_port_base()) as running:
        yield running
