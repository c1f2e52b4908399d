"""How the command says that it cannot go on."""

from __future__ import annotations

import sys
from typing import NoReturn


def say(line: str) -> None:
    """Tell a person something on stderr; stdout is for what a program may read."""
    print(line, file=sys.stderr, flush=True)


def stop_with(message: str, code: int = 1) -> NoReturn:
    """End the command with a message on stderr."""
    say(message)
    sys.exit(code)
