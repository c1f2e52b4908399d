"""What the payload codec takes, beside the cipher alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.contrib.pydantic import pydantic_data_converter

from domain.provisioning import TenantRequest
from runtime.clock import new_id
from runtime.codec import EncryptingCodec
from tests.bench.measure import Bench

BATCHES = 21
BATCH = 1000


async def codec(bench: Bench) -> None:
    """Measure one payload, the input of a step."""
    keys = bench.settings.key_ring
    assert keys is not None
    coding = EncryptingCodec(keys)
    request = TenantRequest(operation_id=new_id(), tenant_slug="bench")
    payload = pydantic_data_converter.payload_converter.to_payloads([request])[0]
    sealed = (await coding.encode([payload]))[0]
    cipher, nonce, clear = AESGCM(os.urandom(32)), os.urandom(12), payload.SerializeToString()
    closed = cipher.encrypt(nonce, clear, None)

    async def encrypt() -> object:
        return cipher.encrypt(nonce, clear, None)

    async def decrypt() -> object:
        return cipher.decrypt(nonce, closed, None)

    pairs: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
        "encode": (lambda: coding.encode([payload]), encrypt),
        "decode": (lambda: coding.decode([sealed]), decrypt),
    }
    rows = []
    for name, (work, bare) in pairs.items():
        took: list[float] = []
        alone: list[float] = []
        for _ in range(BATCHES):
            took.append(await _each(work))
            alone.append(await _each(bare))
        whole, least = statistics.median(took), statistics.median(alone)
        rows.append((name, f"{whole * 1e6:.1f} µs", f"{least * 1e6:.1f} µs", f"{whole / least:.1f} x"))
    size = f"{len(clear)} bytes, {sealed.ByteSize()} encrypted"
    bench.print(f"One payload of {size}", ("codec", "AES-GCM alone", "beside it"), rows)


async def _each(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    for _ in range(BATCH):
        await work()
    return (time.perf_counter() - started) / BATCH
