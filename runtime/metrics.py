"""Our own metrics, on the worker's Prometheus endpoint beside those of the SDK."""

from __future__ import annotations

from collections.abc import Mapping

from temporalio.client import Client
from temporalio.common import MetricMeter
from temporalio.runtime import Runtime

from domain.operations import OperationKind, OperationState

OPEN_STATES = (OperationState.WAITING, OperationState.RUNNING, OperationState.NEEDS_OPERATOR)


class Metrics:
    """What a worker tells about the platform as a whole: every worker tells the same."""

    def __init__(self, meter: MetricMeter) -> None:
        self._breaker_open = meter.create_gauge(
            "dezky_vendor_breaker_open", "1 while calls to the vendor are held back, because it refused our credential"
        )

        self._operations_open = meter.create_gauge(
            "dezky_operations_open", "Operations that have not ended, by kind and state; needsOperator waits for people"
        )

    def tell_operations(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Tell how many operations are open by kind and state; what is not counted is zero."""
        for kind in OperationKind:
            for state in OPEN_STATES:
                self._operations_open.set(counts.get((kind, state), 0), {"kind": kind.value, "state": state.value})

    def tell_breaker(self, vendor: str, *, is_open: bool) -> None:
        """Tell whether the breaker of a vendor is open."""
        self._breaker_open.set(int(is_open), {"vendor": vendor})


def build_metrics(client: Client) -> Metrics:
    """Return the metrics that are served where the client's own are."""
    runtime = client.service_client.config.runtime or Runtime.default()
    return Metrics(runtime.metric_meter)
