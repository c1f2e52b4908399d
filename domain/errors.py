"""Every error the control plane raises on purpose.

    ControlPlaneError                     root: code, message, retryable
    |-- CallerError                       the caller's business "no": a problem document, nobody is alerted
    |   |-- Malformed             400
    |   |-- Unauthenticated       401
    |   |-- NotAllowed            403
    |   |-- NotFound              404     also: not visible to the caller
    |   |-- Conflict              409
    |   |-- TooLarge              413
    |   |-- UnsupportedMedia      415
    |   `-- Invalid               422
    |-- Unavailable               503     our own database or Temporal cannot be reached
    |-- OperationClosed                   an attempt came after its operation had ended: it must not write
    |-- OperationUndoing                  an attempt came while its operation is being undone: it must not write
    |-- AttemptOutdated                   a newer attempt of the step was recorded: this one must not write
    |-- ResourceChanged                   what an attempt read is outdated: another one has recorded its result
    `-- VendorError                       an outside system
        |-- VendorUnavailable             weather: refused, 5xx, timeout of a read            retried
        |-- VendorRateLimited             weather: asked to slow down                         retried after its time
        |-- NotReadyYet                   a poll has not seen the end yet                     retried
        |-- OutcomeUnknown                a write was sent and its answer lost: observe next  retried
        |-- VendorAuthFailed              our credential is refused                           final
        |-- BreakerOpen                   it was refused before: this call was not sent       final
        |-- VendorRejected                the vendor says no for good                         final
        |   `-- ForeignObject             a name we need belongs to an object without our mark
        `-- IdentityExists                a person's login name is taken by an unlinked identity

`code` is snake_case and a wire contract: workflows and clients branch on it, never on a class or a text.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar


class ControlPlaneError(Exception):
    """Root of the tree.

    Attributes:
        code: stable snake_case name of what went wrong.
        message: a sentence for people, free of secrets.
        retryable: whether the same request may succeed later unchanged.
        extra: further members of the problem document.
    """

    default_code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, code: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.extra = extra


class CallerError(ControlPlaneError):
    """The caller's business "no"."""

    retryable = False


class Malformed(CallerError):
    """The request cannot be understood."""

    default_code = "malformed"
    status = 400


class Unauthenticated(CallerError):
    """No token, or one that proves nothing."""

    default_code = "unauthenticated"
    status = 401


class NotAllowed(CallerError):
    """The caller is known and may not do this."""

    default_code = "not_allowed"
    status = 403


class NotFound(CallerError):
    """It does not exist, or the caller may not know that it does."""

    default_code = "not_found"
    status = 404


class Conflict(CallerError):
    """Something else is in the way: a taken name, a held lock, a spent limit."""

    default_code = "conflict"
    status = 409


class TooLarge(CallerError):
    """The body is larger than the API reads."""

    default_code = "too_large"
    status = 413


class UnsupportedMedia(CallerError):
    """The body is not JSON by its Content-Type."""

    default_code = "unsupported_media_type"
    status = 415


class Invalid(CallerError):
    """The request is understood and cannot be carried out as it is."""

    default_code = "invalid"
    status = 422


class Unavailable(ControlPlaneError):
    """A part of our own house cannot be reached."""

    default_code = "unavailable"
    status = 503


class OperationClosed(ControlPlaneError):
    """The operation of an attempt has ended: without its lock the attempt must not write."""

    default_code = "operation_closed"
    retryable = False


class OperationUndoing(ControlPlaneError):
    """The operation of an attempt is being undone: the attempt must not write.

    Its workflow has not heard of it, because it was reset to before the cancel.
    """

    default_code = "operation_undoing"
    retryable = False


class AttemptOutdated(ControlPlaneError):
    """A newer attempt of the step was recorded: this one must not write.

    Retried, because Temporal ignores what an outdated attempt says; if it was the newest after all (its server's clock
    stepped back), it goes on once the clock has caught up.
    """

    default_code = "attempt_outdated"


class ResourceChanged(ControlPlaneError):
    """Another attempt recorded another object meanwhile: what this one chose by is outdated."""

    default_code = "resource_changed"


class VendorError(ControlPlaneError):
    """An outside system did not do what was asked.

    Attributes:
        vendor: `authentik`, `stalwart`, `ocis` or `stripe`.
        http_status: of the answer, if there was one.
        request_id: the vendor's own id of the request, for its support or logs.
        retry_after: how long the vendor asked us to wait.
        replayed: the answer came from the vendor's idempotency store, so the same key would get it again.
        outcome_unknown: the write may have been done, or may still be done, although it failed for us.
    """

    default_code = "vendor_error"
    status = 502
    outcome_unknown: bool = False

    def __init__(
        self,
        vendor: str,
        message: str,
        *,
        code: str | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
        retry_after: timedelta | None = None,
        replayed: bool = False,
    ) -> None:
        super().__init__(message, code=code)
        self.vendor = vendor
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after = retry_after
        self.replayed = replayed


class VendorUnavailable(VendorError):
    """Weather: refused connection, 5xx, or a read without an answer in time."""

    default_code = "vendor_unavailable"


class VendorRateLimited(VendorError):
    """The vendor asks to slow down; `retry_after` says for how long, if it told."""

    default_code = "vendor_rate_limited"


class NotReadyYet(VendorError):
    """What is polled for is not there yet."""

    default_code = "not_ready_yet"


class OutcomeUnknown(VendorError):
    """A write was sent and its answer did not come: it may have been done, or may still be."""

    default_code = "outcome_unknown"
    outcome_unknown = True


class VendorAuthFailed(VendorError):
    """Our credential is refused. Repeating it could get our address banned."""

    default_code = "vendor_auth_failed"
    retryable = False


class BreakerOpen(VendorError):
    """The vendor refused our credential before: nothing is sent to it until a probe passes."""

    default_code = "vendor_breaker_open"
    retryable = False


class VendorRejected(VendorError):
    """The vendor refuses for good: the same request will never succeed."""

    default_code = "vendor_rejected"
    retryable = False


class ForeignObject(VendorRejected):
    """A name we need is held by an object that does not carry our mark."""

    default_code = "foreign_object"


class IdentityExists(VendorRejected):
    """A person's login name belongs to an identity that is not linked to ours; e-mail never links."""

    default_code = "identity_exists"
