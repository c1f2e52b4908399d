"""Starts, watches and stops the servers of the embedded stack, and the API and worker beside them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from runtime.wiring import Store
from sandbox.stack.children import Child, ChildSpec, end_leftovers, holder_of_port, record_children
from sandbox.stack.layout import VENDORS, Files, LayoutError, Ports, find_binary
from sandbox.stack.seeds import seed

HOST = "127.0.0.1"
DATABASE = "dezky"
REPLICA_SET = "rs0"
# The code of MongoDB's error for a server that is in no replica set yet.
NOT_YET_INITIALIZED = 94
READY_PATIENCE_SECONDS = 90.0
LOOK_EVERY_SECONDS = 0.1
# Refused by the settings when the environment is production.
TOKENS = {vendor: f"dev-{vendor}-token" for vendor in VENDORS}
PAYLOAD_KEYS = f"dev-1:{base64.b64encode(b'dev-keeps-nothing-secret-32bytes').decode()}"
PRODUCT = ("api", "worker")


@dataclass(frozen=True)
class Facts:
    """What others need to know of a running stack: addresses, and the stand-in's own token."""

    portBase: int  # noqa: N815 - the names of the status document
    pid: int
    api: str
    temporal: str
    temporalUi: str  # noqa: N815
    mongo: str
    mongoDatabase: str  # noqa: N815
    s3: str
    sandbox: dict[str, str]


class Stack:
    """One embedded stack in one data directory."""

    def __init__(
        self,
        ports: Ports,
        files: Files,
        say: Callable[[str], None],
        *,
        without: Sequence[str] = (),
    ) -> None:
        """Lay the stack out; nothing is started.

        Args:
            say: told in one line what happens to children.
            without: children of ours (`api`, `worker`) that somebody else runs, for example under a debugger.
        """
        self._ports = ports
        self._files = files
        self._say = say
        self._without = without
        self._children: list[Child] = []
        self._own_mongo = "MONGO_URL" not in os.environ
        self.facts = self._facts()

    async def start(self) -> None:
        """Start everything and return when the API is ready.

        Raises:
            LayoutError: a port is taken, a binary is missing, MongoDB cannot be used, or something did not become
                ready in 90 s.
        """
        self._files.prepare()
        self._files.stack.unlink(missing_ok=True)
        end_leftovers(self._files.children, self._say)
        self._refuse_taken_ports()
        specs = self._server_specs()
        for spec in specs:
            await self._start(spec)
        await asyncio.gather(
            self._mongo_ready(),
            self._port_ready("temporal", self._ports.temporal),
            *(self._port_ready(f"standin-{vendor}", self._ports.standin(vendor)) for vendor in VENDORS),
        )
        try:
            store = Store(self.facts.mongo, self.facts.mongoDatabase)
            await seed(store, self.facts.sandbox["authentik"], TOKENS["authentik"])
        except PyMongoError as error:
            where = "MongoDB" if self._own_mongo else "The MongoDB that MONGO_URL names"
            raise LayoutError(f"{where} cannot be used: {str(error)[:200]}") from None
        store.database.close()
        for spec in self._product_specs():
            if spec.name not in self._without:
                await self._start(spec)
        self._files.stack.write_text(json.dumps(asdict(self.facts), indent=2))
        self._files.stack.chmod(0o600)  # the address of a MongoDB of somebody's own may hold its password
        if "api" not in self._without:
            await self._until("the API", self._api_ready)
        if "worker" not in self._without:
            await self._port_ready("worker", self._ports.worker_metrics)

    async def stop(self) -> None:
        """Stop every child: ours first, then the servers they need."""
        for child in self._children:
            child.stopping()
        for names in (PRODUCT, None):
            group = [child for child in self._children if names is None or child.spec.name in names]
            await asyncio.gather(*(child.stop() for child in group))
        self._files.children.unlink(missing_ok=True)
        self._files.stack.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """Return the environment of the API and the worker; what `up` was given wins, except the addresses here."""
        issuers = [f"{self.facts.sandbox['authentik']}/application/o/{slug}/" for slug in _APPLICATIONS]
        defaults = {
            "ENVIRONMENT": "development",
            "LOG_FORMAT": "console",
            "BILLING_STRIPE_ENABLED": "true",
            "DOMAIN_PROOF": "assume",
            "PAYLOAD_KEYS": PAYLOAD_KEYS,
            "STRIPE_API_KEY": TOKENS["stripe"],
            "AUTHENTIK_TOKEN": TOKENS["authentik"],
            "STALWART_TOKEN": TOKENS["stalwart"],
            "OCIS_TOKEN": TOKENS["ocis"],
        }
        fixed = {
            "API_HOST": HOST,
            "API_PORT": str(self._ports.api),
            "PUBLIC_URL": self.facts.api,
            "MONGO_URL": self.facts.mongo,
            "MONGO_DATABASE": self.facts.mongoDatabase,
            "TEMPORAL_ADDRESS": self.facts.temporal,
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_UI_URL": self.facts.temporalUi,
            "WORKER_METRICS_PORT": str(self._ports.worker_metrics),
            "AUTHENTIK_URL": self.facts.sandbox["authentik"],
            "AUTHENTIK_ISSUER": ",".join(issuers),
            "AUTHENTIK_AUDIENCE": ",".join(_APPLICATIONS),
            "STALWART_URL": self.facts.sandbox["stalwart"],
            "OCIS_URL": self.facts.sandbox["ocis"],
            "STRIPE_API_BASE": self.facts.sandbox["stripe"],
        }
        return {**defaults, **os.environ, **fixed}

    def _facts(self) -> Facts:
        def url(port: int) -> str:
            return f"http://{HOST}:{port}"

        own = f"mongodb://{HOST}:{self._ports.mongo}/?replicaSet={REPLICA_SET}&directConnection=true"
        return Facts(
            portBase=self._ports.base,
            pid=os.getpid(),
            api=url(self._ports.api),
            temporal=f"{HOST}:{self._ports.temporal}",
            temporalUi=url(self._ports.temporal_ui),
            mongo=own if self._own_mongo else os.environ["MONGO_URL"],
            mongoDatabase=os.environ.get("MONGO_DATABASE", DATABASE),
            s3=url(self._ports.s3),
            sandbox={
                "authentik": url(self._ports.standin("authentik")),
                "authentikToken": TOKENS["authentik"],
                **{vendor: url(self._ports.standin(vendor)) for vendor in VENDORS if vendor != "authentik"},
            },
        )

    def _server_specs(self) -> list[ChildSpec]:
        ports, files = self._ports, self._files
        specs = []
        if self._own_mongo:
            specs.append(ChildSpec("mongo", self._mongo_command()))
        temporal = [
            str(find_binary("temporal")), "server", "start-dev",
            "--ip", HOST, "--port", str(ports.temporal),
            "--ui-ip", HOST, "--ui-port", str(ports.temporal_ui), "--http-port", str(ports.temporal_http),
            "--metrics-port", str(ports.temporal_metrics), "--db-filename", str(files.temporal),
            # A journal that is flushed at checkpoints loses nothing when the server is killed, and is thrice as fast.
            "--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=1",
            "--dynamic-config-value", "matching.numTaskqueueReadPartitions=1",
            "--dynamic-config-value", "matching.numTaskqueueWritePartitions=1",
            "--ui-codec-endpoint", f"{self.facts.api}/codec",
            "--log-level", "warn",
        ]  # fmt: skip
        specs.append(ChildSpec("temporal", temporal))
        s3 = [
            str(find_binary("rclone")), "serve", "s3", str(files.s3),
            "--addr", f"{HOST}:{ports.s3}", "--auth-key", "dev-s3-access,dev-s3-secret", "--config", os.devnull,
        ]  # fmt: skip
        specs.append(ChildSpec("s3", s3))
        for vendor in VENDORS:
            command = [
                sys.executable, "-m", "sandbox.serve", vendor,
                "--host", HOST, "--port", str(ports.standin(vendor)),
                "--state", str(files.standin(vendor)), "--token", TOKENS[vendor],
            ]  # fmt: skip
            specs.append(ChildSpec(f"standin-{vendor}", command))
        return specs

    def _mongo_command(self) -> list[str]:
        return [
            str(find_binary("mongod")), "--bind_ip", HOST, "--port", str(self._ports.mongo),
            "--dbpath", str(self._files.mongo), "--replSet", REPLICA_SET,
            "--nounixsocket",
            "--wiredTigerCacheSizeGB", "0.5", "--quiet",
            # A killed client's open transaction would block others for a minute.
            "--setParameter", "transactionLifetimeLimitSeconds=10",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
        ]  # fmt: skip

    def _product_specs(self) -> list[ChildSpec]:
        environment = self.environment()
        return [
            ChildSpec("api", [sys.executable, "-m", "cli.main", "api"], environment),
            ChildSpec("worker", [sys.executable, "-m", "cli.main", "worker"], environment),
        ]

    async def _start(self, spec: ChildSpec) -> None:
        child = Child(spec, self._files.logs / f"{spec.name}.log", self._say)
        child.on_change = self._record
        self._children.append(child)
        await child.start()

    def _record(self) -> None:
        record_children(self._files.children, self._children)

    def _refuse_taken_ports(self) -> None:
        ports = self._ports
        named = {
            "API": ports.api,
            "Temporal": ports.temporal,
            "Temporal web UI": ports.temporal_ui,
            "Temporal HTTP": ports.temporal_http,
            "S3": ports.s3,
            "worker metrics": ports.worker_metrics,
            "Temporal metrics": ports.temporal_metrics,
            **({"MongoDB": ports.mongo} if self._own_mongo else {}),
            **{f"{vendor} stand-in": ports.standin(vendor) for vendor in VENDORS},
        }
        taken = [
            f"port {port} ({name}) is taken by {holder_of_port(port) or 'a process that cannot be seen'}"
            for name, port in named.items()
            if not _bindable(port)
        ]
        if taken:
            raise LayoutError("\n".join([*taken, "Choose another --port-base, or end what is there."]))

    async def _mongo_ready(self) -> None:
        """Wait for MongoDB, and make it the one-node replica set that transactions need."""
        if not self._own_mongo:
            return
        url = f"mongodb://{HOST}:{self._ports.mongo}/?directConnection=true"
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url, serverSelectionTimeoutMS=500)

        async def primary() -> bool:
            hello = await client.admin.command("hello")
            if f"{HOST}:{self._ports.mongo}" not in hello.get("hosts", []):
                await self._set_address(client)
            return bool(hello.get("isWritablePrimary"))

        try:
            await self._until("MongoDB", primary)
        finally:
            await client.close()

    async def _set_address(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Make the replica set, or tell one that was made under another port base its new address."""
        try:
            config = (await client.admin.command("replSetGetConfig"))["config"]
        except OperationFailure as error:
            if error.code != NOT_YET_INITIALIZED:
                raise
            members = [{"_id": 0, "host": f"{HOST}:{self._ports.mongo}"}]
            await client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            return
        config["members"][0]["host"] = f"{HOST}:{self._ports.mongo}"
        config["version"] += 1
        await client.admin.command("replSetReconfig", config, force=True)

    async def _port_ready(self, name: str, port: int) -> None:
        async def connects() -> bool:
            _reader, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            await writer.wait_closed()
            return True

        await self._until(name, connects)

    async def _api_ready(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(f"{self.facts.api}/health/ready", timeout=5)).status_code == 200

    async def _until(self, what: str, ready: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + READY_PATIENCE_SECONDS
        while loop.time() < until:
            try:
                if await ready():
                    return
            except (OSError, httpx.HTTPError, PyMongoError):
                pass
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        raise LayoutError(f"{what} did not become ready in {READY_PATIENCE_SECONDS:.0f} s; logs: {self._files.logs}")


_APPLICATIONS = ("dezky-portal", "dezky-operator")


def read_facts(data_dir: Path) -> Facts | None:
    """Return what is known of the stack that runs in a data directory, None if none does."""
    try:
        return Facts(**json.loads(Files(data_dir).stack.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
