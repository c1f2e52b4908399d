"""The S3 client: one bucket, no retries, and nothing believed that was not read back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)

from domain.errors import VendorAuthFailed, VendorError, VendorRateLimited, VendorRejected, VendorUnavailable
from integrations.call_context import out_of_time, time_limit
from integrations.http import TOTAL_LIMIT, no_answer, safe_text
from integrations.object_storage.models import StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

VENDOR: Final = "object_storage"
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_REFUSED_CREDENTIAL = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_SLOW_DOWN = frozenset({"SlowDown", "TooManyRequests", "RequestLimitExceeded", "429"})
T = TypeVar("T")


class ObjectStorage:
    """Puts and gets objects of one bucket.

    boto3 blocks, so each call runs in a thread; the limits of its sockets end that thread when the caller is gone.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str | None,
        region: str,
        access_key: str,
        secret_key: str,
        limit: timedelta = TOTAL_LIMIT,
    ) -> None:
        """Take where the bucket is; nothing is connected yet.

        Args:
            bucket: must exist.
            endpoint: None for Amazon's own.
            region: any word will do for most other stores.
            access_key: of the credential.
            secret_key: of the credential.
            limit: for each call.
        """
        self._bucket = bucket
        self._limit = limit
        config = Config(
            connect_timeout=5,
            read_timeout=20,
            # The first request included: retries belong to Temporal.
            retries={"total_max_attempts": 1},
            # Any store, also one without a name of its own for each bucket.
            s3={"addressing_style": "path"},
            # Newer defaults send checksums that many compatible stores refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )

    async def check(self) -> None:
        """Ensure that the bucket is there and takes our credential."""
        await self._call(lambda: self._client.head_bucket(Bucket=self._bucket), write=False)

    async def put(self, key: str, content: bytes, content_type: str = "application/octet-stream") -> None:
        """Store an object.

        Idempotency: repeating it with the same content changes nothing that a reader could see. A success says only
        that the store answered so: read it back before relying on it.

        Raises:
            OutcomeUnknown: the answer was lost.
        """
        await self._call(
            lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=content, ContentType=content_type),
            write=True,
        )

    async def get(self, key: str) -> bytes | None:
        """Return an object's content as it is stored, None if there is none."""

        def read() -> bytes:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

        return await self._absent_is_none(read)

    async def describe(self, key: str) -> StoredObject | None:
        """Return what is known of an object, None if there is none."""

        def head() -> StoredObject:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
            return StoredObject(key=key, size=found["ContentLength"], modified_at=found["LastModified"])

        return await self._absent_is_none(head)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    async def _absent_is_none(self, read: Callable[[], T]) -> T | None:
        try:
            return await self._call(read, write=False)
        except VendorRejected as error:
            if error.code == "vendor_not_found":
                return None
            raise

    async def _call(self, work: Callable[[], T], *, write: bool) -> T:
        if out_of_time():
            raise VendorUnavailable(VENDOR, f"{VENDOR} was not called: the time of this attempt is up")
        try:
            async with time_limit(self._limit):
                return await asyncio.to_thread(work)
        except ClientError as error:
            raise _refusal(error, write=write) from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise VendorUnavailable(VENDOR, f"{VENDOR} cannot be reached ({type(error).__name__})") from error
        except NoCredentialsError as error:
            raise VendorAuthFailed(VENDOR, "there is no credential") from error
        except (BotoCoreError, TimeoutError, OSError) as error:
            raise no_answer(VENDOR, f"{VENDOR} did not answer ({type(error).__name__})", write=write) from error


def _refusal(error: ClientError, *, write: bool) -> VendorError:
    """Return the error for an answer that is no success."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status, request_id = metadata.get("HTTPStatusCode", 0), metadata.get("RequestId")
    message = safe_text(f"{VENDOR} answered {status} {code}")
    if code in _ABSENT or status == 404:
        # A missing bucket is a mistake of ours, a missing object an answer.
        kind = "bucket_missing" if code == "NoSuchBucket" else "vendor_not_found"
        return VendorRejected(VENDOR, message, code=kind, http_status=status, request_id=request_id)
    if code in _REFUSED_CREDENTIAL or status == 401:
        return VendorAuthFailed(VENDOR, message, http_status=status, request_id=request_id)
    if status == 403:
        return VendorRejected(VENDOR, message, code="vendor_forbidden", http_status=status, request_id=request_id)
    if code in _SLOW_DOWN or status == 429:
        return VendorRateLimited(VENDOR, message, http_status=status, request_id=request_id)
    if status >= 500:
        return no_answer(VENDOR, message, write=write, http_status=status, request_id=request_id)
    return VendorRejected(VENDOR, message, http_status=status, request_id=request_id)
