"""The reference says what the code says, and every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main
from pydantic import SecretStr

from api.app import create_app
from cli.main import app as command_line
from domain.tenants import OUR_WORDS
from runtime.settings import AuthentikSettings, OcisSettings, Settings, StalwartSettings
from tests.docs.generate import REFERENCE, ROOT, TABLES, error_classes, render

NOT_OURS = {".venv", ".git", ".dezky", "build", "dist", "node_modules"}
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)


@pytest.mark.parametrize("page", sorted({home for home, _table in TABLES.values()}))
def test_generated_tables_are_up_to_date(page: str) -> None:
    """A setting or an error code that changed in the code changes in its page."""
    committed = (REFERENCE / page).read_text()
    assert committed == render(page, committed), (
        f"docs/reference/{page} differs from the code; run: .venv/bin/python -m tests.docs.generate"
    )


def test_every_code_is_explained() -> None:
    """Codes are a wire contract: whoever reads one finds it."""
    page = (REFERENCE / "error-codes.md").read_text()
    codes = {*OUR_WORDS, *(each.default_code for each in error_classes().values())}
    assert sorted(code for code in codes if f"`{code}`" not in page) == []


def test_every_route_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that is added to the API is added to its page."""
    monkeypatch.setattr("api.app.configure_logging", lambda **_options: None)
    settings = Settings(
        authentik=AuthentikSettings(
            url="http://a.test", token=SecretStr("t"), issuer=["http://a.test/"], audience=["a"]
        ),
        stalwart=StalwartSettings(url="http://s.test", token=SecretStr("t")),
        ocis=OcisSettings(url="http://o.test", token=SecretStr("t")),
    )
    page = (REFERENCE / "http-api.md").read_text()
    paths = create_app(settings).openapi()["paths"]
    routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert routes
    assert [route for route in routes if f"`{route}`" not in page] == []


def test_every_command_and_option_is_in_the_reference() -> None:
    """A command or option that is added to `dezky` is added to its page."""
    page = (REFERENCE / "cli.md").read_text()
    # Typer carries its own copy of click, whose types it does not export.
    commands: Any = [("dezky", typer.main.get_command(command_line))]
    wanted: set[str] = set()
    for path, command in commands:
        wanted |= {path, *(option for each in command.params for option in each.opts if option.startswith("--"))}
        commands += [(f"{path} {name}", each) for name, each in getattr(command, "commands", {}).items()]
    assert len(commands) > 1
    assert sorted(each for each in wanted if each not in page) == []


def test_relative_links_lead_somewhere() -> None:
    """Every relative link in every Markdown file names a file that exists, and a heading that it has."""
    broken = [f"{page.relative_to(ROOT)}: {target}" for page, target in _links() if not _leads_somewhere(page, target)]
    assert broken == []


def _pages() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if not any(part in NOT_OURS or part.startswith(".") for part in parts):
            yield path


def _links() -> Iterator[tuple[Path, str]]:
    for page in _pages():
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            if not re.match(r"[a-z][a-z+.-]*:", target):
                yield page, target


def _leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = (page.parent / unquote(name)).resolve() if name else page
    if not path.exists():
        return False
    return not anchor or path.suffix != ".md" or anchor in {_anchor(each) for each in HEADING.findall(path.read_text())}


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
