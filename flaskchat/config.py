"""Every setting, once: name, type, default, unit and help.

`Settings` is the one table; `SETTINGS` is derived from it and feeds the defaults, the `flask chat settings` command,
the documentation and its test. Settings live in `app.config` under `FLASKCHAT_<NAME>`; strings (as the environment
gives them) are cast, and None means the same as absence.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import ConfigurationError

logger = logging.getLogger("flaskchat")

PREFIX = "FLASKCHAT_"
PLACES = 1 << 20
"""What is counted over all workers can be at most so many; see places.py."""
LONGEST = 1e6
"""Seconds; what a setting may ask for at most. The kernel's timers hold 32 bits of milliseconds."""

_PREFIX_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*\Z")


def _setting(
    default: Any,
    help: str,  # noqa: A002
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    if unit == "seconds":
        maximum = LONGEST
    return field(
        default=default,
        metadata={"help": help, "unit": unit, "minimum": minimum, "maximum": maximum, "secret": secret},
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The settings of one application, cast and checked."""

    url_prefix: str = _setting("/chat", "Path under which the chat is mounted; empty for the root.")
    database_url: str | None = _setting(
        None, "URL of the store, `sqlite:////path` or `postgresql://user:password@host/database`; absent: SQLite in "
        "`flaskchat.sqlite3` in the instance folder.",
    )
    redis_url: str | None = _setting(
        None, "Redis that holds the log of live replies; absent: the database does.", secret=True
    )
    redis_prefix: str = _setting("flaskchat", "What the names of its keys begin with, where several share one Redis.")
    database_timeout: float = _setting(
        5.0,
        "How long a request waits for the database's lock before it is answered with 503.",
        unit="seconds",
        minimum=0.1,
    )
    retention_days: float = _setting(
        0.0, "Conversations in which nothing has happened for so long are deleted; 0: none are.", unit="days", minimum=0
    )
    identity_required: bool = _setting(False, "Refuse anonymous visitors with 401.")

    model: str | None = _setting(None, "The default model, `provider:name`, or the name of a Python model.")
    models: str = _setting("", "Further models to offer, `provider:name`, separated by commas.")
    titles: bool = _setting(True, "Ask the model for a conversation's title, beside its first reply.")
    system_prompt: str = _setting("", "System prompt of conversations that have none of their own.")
    openai_base_url: str = _setting("https://api.openai.com/v1", "Address of an OpenAI-compatible server.")
    openai_api_key: str | None = _setting(None, "The key for OpenAI, or for that server.", secret=True)
    anthropic_base_url: str = _setting("https://api.anthropic.com", "Address of Anthropic's API.")
    anthropic_api_key: str | None = _setting(None, "The key for Anthropic.", secret=True)
    plain_http: bool = _setting(False, "Allow http to model servers on other machines, not only on this one.")
    log_model_errors: bool = _setting(
        False, "Log the words with which a model's server explains an error; they may repeat what users wrote."
    )
    max_output_tokens: int = _setting(
        8192, "Longest reply asked of a model whose API wants to be told (Anthropic's).", unit="tokens", minimum=1
    )

    connect_timeout: float = _setting(10.0, "Until the model's server is connected.", unit="seconds", minimum=0.1)
    first_byte_timeout: float = _setting(
        120.0, "From the question to the first byte of the reply, all attempts together.", unit="seconds", minimum=0.1
    )
    gap_timeout: float = _setting(60.0, "Longest silence of a model within a reply.", unit="seconds", minimum=0.1)
    run_timeout: float = _setting(900.0, "Longest a reply may take as a whole.", unit="seconds", minimum=1)
    retries: int = _setting(2, "Further attempts at a busy or unreachable model, before its first byte.", minimum=0)
    max_reply_bytes: int = _setting(
        2 << 20, "Longest text of one reply; at it the reply ends with an error.", unit="bytes", minimum=1024
    )

    heartbeat: float = _setting(15.0, "Silence after which a stream gets a heartbeat.", unit="seconds", minimum=0.05)
    retry: float = _setting(
        2.0, "When a browser's EventSource comes back after a drop, give or take half.", unit="seconds", minimum=0.1
    )
    stall_timeout: float = _setting(
        25.0, "How long a client may leave its stream unread before it is cut off.", unit="seconds", minimum=1
    )
    send_buffer: int = _setting(65536, "Send buffer of a stream's socket.", unit="bytes", minimum=4096, maximum=1 << 30)
    drain: float = _setting(
        5.0, "How long a worker that is told to leave goes on with its replies. Shorter than graceful_timeout.",
        unit="seconds", minimum=0,
    )  # fmt: skip
    hub_limit: float = _setting(
        0.1, "How long one call may hold a gevent worker before its stack is logged; 0: nothing watches.",
        unit="seconds", minimum=0,
    )  # fmt: skip
    max_streams: int | None = _setting(
        None, "Open streams in one worker; absent: nine tenths of its connections or threads.",
        unit="streams", minimum=1,
    )  # fmt: skip
    max_runs: int = _setting(2000, "Replies being written at once in one worker.", unit="replies", minimum=1)
    max_queued_bytes: int = _setting(
        256 << 20, "Replies being written, as one worker holds them in memory; above it no further one begins.",
        unit="bytes", minimum=1 << 16,
    )  # fmt: skip
    max_runs_per_owner: int = _setting(
        3, "Replies being written at once for one owner, in all workers; 0: no limit.", unit="replies", minimum=0
    )
    messages_per_minute: int = _setting(
        30, "What one owner may send in any 60 seconds, in all workers; 0: no limit.", unit="messages", minimum=0
    )
    tokens_per_day: int = _setting(
        0, "What one owner may use in any 24 hours, questions and replies together; 0: no limit.",
        unit="tokens", minimum=0,
    )  # fmt: skip
    max_streams_per_owner: int = _setting(
        10, "Open streams of one owner, in all workers and, on PostgreSQL, all hosts; 0: no limit.", unit="streams",
        minimum=0, maximum=PLACES,
    )
    max_streams_per_address: int = _setting(
        200, "Open streams of one client address, counted as those of an owner; 0: no limit. Behind a proxy, have its "
        "X-Forwarded-For believed, or all clients have its address.", unit="streams", minimum=0, maximum=PLACES,
    )  # fmt: skip
    connections_per_second: int = _setting(
        50, "New streams that one client address may open in a second, in all workers of a host; 0: no limit.",
        unit="streams", minimum=0, maximum=PLACES,
    )  # fmt: skip
    metrics_token: str | None = _setting(
        None, "What a scraper of /metrics must send as its bearer token; absent: there is no /metrics.", secret=True
    )
    live_bytes: int = _setting(
        128 << 20, "Events of live replies kept in one worker's memory; older ones are read from the log.",
        unit="bytes", minimum=1 << 16,
    )  # fmt: skip
    body_timeout: float = _setting(
        30.0, "How long a client may take to send a request's body; then it is answered with 408.",
        unit="seconds", minimum=1,
    )  # fmt: skip
    max_body_bytes: int = _setting(1 << 20, "Largest request body.", unit="bytes", minimum=1024)
    max_text_chars: int = _setting(100_000, "Longest message a user may send.", unit="characters", minimum=1)

    def __post_init__(self) -> None:
        path = self.url_prefix.rstrip("/")
        if not _PREFIX_PATH.match(path):
            raise ConfigurationError(
                f"{PREFIX}URL_PREFIX={self.url_prefix!r}: expected a path such as '/chat', or '' for the root"
            )
        object.__setattr__(self, "url_prefix", path)
        if not self.redis_prefix or "{" in self.redis_prefix or "}" in self.redis_prefix:
            raise ConfigurationError(
                f"{PREFIX}REDIS_PREFIX={self.redis_prefix!r}: expected a word without braces, the keys' hash tag"
            )

    def __repr__(self) -> str:
        rows = (f"{setting.field}={setting.show(getattr(self, setting.field))}" for setting in SETTINGS)
        return f"Settings({', '.join(rows)})"


class Setting(NamedTuple):
    name: str
    type: type
    default: Any
    unit: str
    help: str
    secret: bool
    optional: bool
    minimum: float | None
    maximum: float | None

    @property
    def field(self) -> str:
        """The attribute of `Settings`."""
        return self.name.removeprefix(PREFIX).lower()

    def show(self, value: object) -> str:
        """A value as it may be printed: no key, and no password within an address."""
        if self.secret and value not in (None, ""):
            return "(set)"
        return without_passwords(repr(value))

    @property
    def expected(self) -> str:
        """In words, for errors."""
        words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[self.type]
        if self.unit:
            words += f" of {self.unit}"
        if self.minimum is not None:
            words += f", at least {self.minimum:g}"
        if self.maximum is not None:
            words += f", at most {self.maximum:.0f}"
        return words


def without_passwords(text: str) -> str:
    """The text with the user and password of each URL in it taken out, and what a query calls a password or a key."""
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:password|passwd|pwd|secret|token|key)[^=&\s]*=)[^&\s'\"]*", r"\1***", text)


def _table() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(Settings)
    rows = []
    for item in dataclasses.fields(Settings):
        hint, optional = hints[item.name], False
        if isinstance(hint, types.UnionType):
            optional = True
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        rows.append(
            Setting(
                name=PREFIX + item.name.upper(), type=hint, default=item.default, optional=optional, **item.metadata
            )
        )
    return tuple(rows)


SETTINGS: tuple[Setting, ...] = _table()

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _cast(setting: Setting, value: Any) -> Any:
    if value is None:
        return setting.default
    if value == "" and setting.optional:
        return None
    if setting.type is bool:
        if isinstance(value, bool):
            return value
        return _BOOLEANS[str(value).strip().lower()]
    if isinstance(value, bool):
        raise ValueError
    if setting.type is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    cast = setting.type(value)
    if setting.type is int and isinstance(value, float) and value != cast:
        raise ValueError
    if not math.isfinite(cast):
        raise ValueError
    if setting.minimum is not None and cast < setting.minimum:
        raise ValueError
    if setting.maximum is not None and cast > setting.maximum:
        raise ValueError
    return cast


def load(config: Mapping[str, Any]) -> Settings:
    """Read the settings out of `app.config`.

    :raises ConfigurationError: names the key, its value (not a secret's) and the type that was expected.
    """
    values = {}
    for setting in SETTINGS:
        if setting.name not in config:
            continue
        value = config[setting.name]
        try:
            values[setting.field] = _cast(setting, value)
        except (ValueError, TypeError, KeyError, OverflowError):
            shown = "(hidden)" if setting.secret else without_passwords(repr(value))
            raise ConfigurationError(f"{setting.name}={shown}: expected {setting.expected}") from None
    return Settings(**values)


def warn_of_unknown(config: Mapping[str, Any]) -> None:
    """Log the keys that are none of ours. They are not refused: they may be meant for another version."""
    known = [setting.name.removeprefix(PREFIX) for setting in SETTINGS]
    for key in config:
        if not isinstance(key, str) or not key.startswith(PREFIX) or key.removeprefix(PREFIX) in known:
            continue
        near = difflib.get_close_matches(key.removeprefix(PREFIX), known, n=1, cutoff=0.75)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; `flask chat settings` lists those that are"
        logger.warning("%s is no setting of this version and does nothing%s", key, hint)
