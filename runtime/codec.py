"""Payloads as Temporal keeps them: encrypted with keys that Temporal never sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec

from runtime.key_ring import KeyRing

ENCODING = b"binary/encrypted"
KEY_ID = "encryption-key-id"


class EncryptingCodec(PayloadCodec):
    """Encrypts whole payloads; the marker and the key's id stay readable, and are bound to the ciphertext.

    A payload without the marker passes untouched: decoded histories replay, and runs from before encryption go on.

    A worker whose ring lacks a key fails no job for good. An error while a workflow's history is decoded fails the
    workflow *task*, and one while an activity's input is decoded fails the *attempt*; Temporal repeats both, and they
    heal once the key is back, an activity within the time budget of its step.

    Source: temporalio 1.35. A non-retryable `ApplicationError` raised here would end the workflow, and heartbeat
    details that cannot be decoded end an activity: so `CannotOpen` is a plain exception, and heartbeats carry none.
    """

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads encrypted with the current key."""
        return [self._seal(each) for each in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as they were.

        Raises:
            CannotOpen: a key is missing, or a payload is not what was encrypted.
        """
        return [self.open(each) for each in payloads]

    def open(self, payload: Payload) -> Payload:
        """Return one payload as it was.

        Raises:
            CannotOpen: its key is missing, or it is not what was encrypted.
        """
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        key_id = payload.metadata.get(KEY_ID, b"").decode(errors="replace")
        return Payload.FromString(self._keys.open(key_id, payload.data, ENCODING))

    def _seal(self, payload: Payload) -> Payload:
        key_id, sealed = self._keys.seal(payload.SerializeToString(), ENCODING)
        return Payload(metadata={"encoding": ENCODING, KEY_ID: key_id.encode()}, data=sealed)


def build_data_converter(keys: KeyRing | None) -> DataConverter:
    """Return how clients, workers and replays write and read payloads; in clear without keys.

    Messages and stack traces of failures become payloads too. What no codec sees stays in clear: ids, types and
    names, the `type` of an `ApplicationError`, search attributes and headers.
    """
    if keys is None:
        return pydantic_data_converter
    return dataclasses.replace(
        pydantic_data_converter,
        payload_codec=EncryptingCodec(keys),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
