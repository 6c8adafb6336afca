"""One tree of errors. Each has a stable code, an HTTP status and says whether trying again may help.

    FlaskChatError
    ├── ConfigurationError          a setting or the server's set-up is wrong; raised at start
    ├── RequestError                the request cannot be served; becomes problem+json (RFC 9457)
    │   ├── TooMany                 429 with Retry-After: too_many_runs, _messages, _tokens, _streams, _connections
    │   ├── BadRequest  NotFound  BodyTooLarge  NotJSON  Invalid  Conflict  CrossOrigin  Unauthorized  TooSlow
    │   └── Unavailable  NotReady   503 with Retry-After: full, draining, store_unavailable; not_ready
    └── ModelError                  the model failed; becomes the run's `error` event
        ├── ModelUnreachable  ModelRefused  ModelBusy  ModelTimeout
        ├── ModelClosedEarly  ModelProtocolError  ModelFailed
        ├── ModelRaised             a Python model raised
        └── ReplyNotKept  ReplyTooLong

`message` is for the user, in plain words, and never holds what a model's server said; `detail` of a ModelError is
for the operator's log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self, TypeVar

from .models import Error

Kind = TypeVar("Kind", bound="FlaskChatError")


class FlaskChatError(Exception):
    """Whatever goes wrong here."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def bare(self, *, alone: bool = False) -> Self:
        """This, without where it came from: for one that is handled and kept. The frames that it came through hold all
        that was in them, down to the pump's with the runs of its tick, and one of them often holds the error: a circle,
        which stays until the collector comes, and that is seldom.

        :param alone: what led to it is left as it is: that is the host's, which may show it later.
        """
        errors: list[BaseException] = [self]
        while errors:
            error = errors.pop()
            if not alone:
                errors += [before for before in (error.__cause__, error.__context__) if before is not None]
            for name in ("__traceback__", "__cause__", "__context__"):
                BaseException.__setattr__(error, name, None)  # one of another library may allow nothing to be set
        return self


class ConfigurationError(FlaskChatError):
    """Raised at start, and names the key, its value and what was expected."""

    code = "configuration_error"


class RequestError(FlaskChatError):
    """:param detail: what is wrong, for the person who reads the answer.
    :param errors: field and reason of each invalid field.
    :param retry_after: seconds until trying again may help.
    :param extra: further members of the problem document, such as `run_id`.
    """

    code = "bad_request"
    status = 400
    title: ClassVar[str] = "Bad request"
    codes: ClassVar[tuple[str, ...]] = ()
    """All that it is raised with, where that is not `code` alone."""

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: list[dict[str, str]] | None = None,
        retry_after: float | None = None,
        **extra: object,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problem_code = code or self.code
        self.errors = errors
        self.retry_after = retry_after
        self.extra = extra

    def problem(self) -> dict[str, object]:
        """The members of the `application/problem+json` document (RFC 9457, section 3)."""
        body: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.problem_code,
        }
        if self.errors is not None:
            body["errors"] = self.errors
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return {**body, **self.extra}


class BadRequest(RequestError):
    pass


class Unauthorized(RequestError):
    code = "unauthorized"
    status = 401
    title = "Sign in first"


class CrossOrigin(RequestError):
    code = "cross_origin"
    status = 403
    title = "Refused from another site"


class NotFound(RequestError):
    code = "not_found"
    status = 404
    title = "Not found"


class Conflict(RequestError):
    code = "run_in_progress"
    status = 409
    title = "A reply is already being written here"


class BodyTooLarge(RequestError):
    code = "body_too_large"
    status = 413
    title = "Too large"


class TooSlow(RequestError):
    """The connection ends with this answer: what would come next on it is the rest of the body."""

    code = "body_timeout"
    status = 408
    title = "Too slow"


class NotJSON(RequestError):
    code = "not_json"
    status = 415
    title = "JSON expected"


class Invalid(RequestError):
    code = "invalid"
    status = 422
    title = "Invalid"
    codes = ("invalid", "idempotency_conflict")


class TooMany(RequestError):
    """Over a limit: so many replies, messages, tokens, streams or connections."""

    code = "too_many"
    status = 429
    title = "Too many"
    retryable = True
    codes = ("too_many_runs", "too_many_messages", "too_many_tokens", "too_many_streams", "too_many_connections")


class Unavailable(RequestError):
    code = "unavailable"
    status = 503
    title = "Not now"
    retryable = True
    codes: ClassVar[tuple[str, ...]] = ("full", "draining", "log_unavailable", "store_unavailable")


class NotReady(Unavailable):
    """`wrong` says what is not: store, log, draining or full, each with a sentence."""

    code = "not_ready"
    codes = ("not_ready",)


class ModelError(FlaskChatError):
    """:param detail: what happened, for the operator's log only.
    :param said: what the model's server sent with it, the detail's end. It may repeat what users or models wrote, so it
        is logged only where that is asked for.
    :param retry_after: seconds that the model's server asked us to wait.
    """

    code = "model_error"
    message: ClassVar[str] = "The model failed. What it had written is kept."
    retryable = True

    def __init__(self, detail: str = "", *, said: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{detail}{said}" or self.message)
        self.detail = f"{detail}{said}"
        self.retry_after = retry_after
        self._own_words = detail
        self._said = said

    def logged(self, *, words: bool) -> str:
        """What stands in the log.

        :param words: whether the server's own words are wanted.
        """
        if self._said and not words:
            return f"{self._own_words}(what it said is not logged unless FLASKCHAT_LOG_MODEL_ERRORS is true)"
        return self.detail or self.message

    def event(self) -> Error:
        return Error(code=self.code, message=self.message, retryable=self.retryable)


class ModelUnreachable(ModelError):
    code = "model_unreachable"
    message = "The model's server could not be reached."


class ModelRefused(ModelError):
    """The server said no in a way that trying again will not change: a bad key, an unknown model, a bad request."""

    code = "model_refused"
    message = "The model's server refused the request."
    retryable = False


class ModelBusy(ModelError):
    """429 or 5xx before the first byte of the reply. The one error that is retried, as Retry-After asks."""

    code = "model_busy"
    message = "The model's server is busy, or failed to begin. Try again in a moment."


class ModelTimeout(ModelError):
    code = "model_timeout"
    message = "The model stayed silent for too long."


class ModelTooSlow(ModelTimeout):
    """It has not been silent: the reply as a whole has taken longer than one may."""

    message = "The reply took longer than a reply may take. What it had written is kept."


class ModelClosedEarly(ModelError):
    code = "model_closed_early"
    message = "The connection to the model broke off. What it had written is kept."


class ModelProtocolError(ModelError):
    code = "model_protocol_error"
    message = "The model's server sent something that is not a reply. What came before is kept."


class ModelFailed(ModelError):
    """The server reported an error inside the stream."""

    code = "model_failed"
    message = "The model's server reported an error. What it had written is kept."


class ModelRaised(ModelError):
    code = "model_raised"
    message = "The model's code failed. What it had written is kept."


class ReplyNotKept(ModelError):
    """Nobody is sent what is not in the log, so a log that stays unusable ends the reply. No fault of the model's."""

    code = "log_unavailable"
    message = "The reply could not be stored any further. What had come by then is kept."


class ReplyTooLong(ModelError):
    code = "reply_too_long"
    message = "The reply reached the largest size that is kept."
    retryable = False


def problem_codes() -> dict[int, list[str]]:
    """Every code that a problem document of ours can have, by its status; for the API's description and the counts."""
    found: dict[int, list[str]] = {}
    for kind in _all(RequestError):
        codes = found.setdefault(kind.status, [])
        codes += [code for code in kind.codes or (kind.code,) if code not in codes]
    return dict(sorted(found.items()))


def model_codes() -> list[str]:
    """Every code that an `error` event of ours can have. A Python model may raise a ModelError with one of its own."""
    return list(dict.fromkeys(kind.code for kind in _all(ModelError)))


def _all(kind: type[Kind]) -> Iterator[type[Kind]]:
    """Those of this module: a host may have more."""
    if kind.__module__ == __name__:
        yield kind
        for further in kind.__subclasses__():
            yield from _all(further)
