"""The Temporal client as every process, test and replay uses it."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from runtime.codec import build_data_converter
from runtime.key_ring import KeyRing
from runtime.search_attributes import ensure_search_attributes

RETENTION = timedelta(days=90)


def metrics_runtime(host: str, port: int | None) -> Runtime | None:
    """Return an SDK runtime that serves Prometheus metrics; made once a process, None without a port."""
    if port is None:
        return None
    return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=f"{host}:{port}")))


async def connect(keys: KeyRing | None, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """Return a client configured by Temporal's own environment (`TEMPORAL_*`, `temporal.toml`).

    Args:
        keys: what encrypts payloads; None leaves them in clear.
        lazy: connect at the first call instead of now.
        runtime: the SDK runtime to use; None for the process's default.
    """
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "127.0.0.1:7233")
    return await Client.connect(**config, data_converter=build_data_converter(keys), lazy=lazy, runtime=runtime)


async def prepare_namespace(client: Client) -> None:
    """Ensure that the namespace knows our search attributes and keeps closed workflows for 90 days.

    A dev server keeps them for one day, and reads its own flags only when its database is new.
    """
    await ensure_search_attributes(client)
    service = client.workflow_service
    described = await service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    if described.config.workflow_execution_retention_ttl.ToTimedelta() < RETENTION:
        ttl = Duration()
        ttl.FromTimedelta(RETENTION)
        config = NamespaceConfig(workflow_execution_retention_ttl=ttl)
        await service.update_namespace(UpdateNamespaceRequest(namespace=client.namespace, config=config))
