"""Every setting, once: name, type, default, unit and help.

`Settings` is the one table; `SETTINGS` is derived from it and feeds the defaults, the `flask chat settings` command,
the documentation and its test. Settings live in `app.config` under `FLASKCHAT_<NAME>`; strings (as the environment
gives them) are cast.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import ConfigurationError

PREFIX = "FLASKCHAT_"


def _setting(default: Any, help: str, *, unit: str = "", minimum: float | None = None, secret: bool = False) -> Any:  # noqa: A002
    return field(
        default=default, repr=not secret, metadata={"help": help, "unit": unit, "minimum": minimum, "secret": secret}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one application, cast and checked."""

    url_prefix: str = _setting("/chat", "Path under which the chat is mounted; empty for the root.")
    database_url: str | None = _setting(
        None, "SQLAlchemy URL of the store; absent: SQLite in `flaskchat.sqlite3` in the instance folder."
    )
    redis_url: str | None = _setting(
        None, "Redis that holds the log of live replies; absent: the database does.", secret=True
    )
    database_timeout: float = _setting(
        5.0,
        "How long a request waits for the database's lock before it is answered with 503.",
        unit="seconds",
        minimum=0.1,
    )
    identity_required: bool = _setting(False, "Refuse anonymous visitors with 401.")

    model: str | None = _setting(None, "The default model, `provider:name`, or the name of a Python model.")
    models: str = _setting("", "Further models to offer, `provider:name`, separated by commas.")
    system_prompt: str = _setting("", "System prompt of conversations that have none of their own.")
    openai_base_url: str = _setting("https://api.openai.com/v1", "Address of an OpenAI-compatible server.")
    openai_api_key: str | None = _setting(None, "Its key.", secret=True)
    anthropic_base_url: str = _setting("https://api.anthropic.com", "Address of Anthropic's API.")
    anthropic_api_key: str | None = _setting(None, "Its key.", secret=True)
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
    send_buffer: int = _setting(65536, "Send buffer of a stream's socket.", unit="bytes", minimum=4096)
    drain: float = _setting(
        5.0, "How long a worker that is told to leave goes on with its replies. Shorter than graceful_timeout.",
        unit="seconds", minimum=0,
    )  # fmt: skip
    max_streams: int | None = _setting(
        None, "Open streams in one worker; absent: nine tenths of its connections or threads.",
        minimum=1,
    )  # fmt: skip
    max_runs: int = _setting(2000, "Replies being written at once in one worker.", minimum=1)
    live_bytes: int = _setting(
        128 << 20, "Events of live replies kept in one worker's memory; older ones are read from the log.",
        unit="bytes", minimum=1 << 16,
    )  # fmt: skip
    max_body_bytes: int = _setting(1 << 20, "Largest request body.", unit="bytes", minimum=1024)
    max_text_chars: int = _setting(100_000, "Longest message a user may send.", unit="characters", minimum=1)

    def __post_init__(self) -> None:
        if self.url_prefix and (not self.url_prefix.startswith("/") or self.url_prefix.endswith("/")):
            raise ConfigurationError(
                f"{PREFIX}URL_PREFIX={self.url_prefix!r}: expected a path such as '/chat', or '' for the root"
            )


class Setting(NamedTuple):
    name: str
    type: type
    default: Any
    unit: str
    help: str
    secret: bool
    optional: bool
    minimum: float | None


def _table() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(Settings)
    rows = []
    for item in dataclasses.fields(Settings):
        hint, optional = hints[item.name], False
        if isinstance(hint, types.UnionType):
            optional = True
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        meta = item.metadata
        rows.append(
            Setting(
                PREFIX + item.name.upper(),
                hint,
                item.default,
                meta["unit"],
                meta["help"],
                meta["secret"],
                optional,
                meta["minimum"],
            )
        )
    return tuple(rows)


SETTINGS: tuple[Setting, ...] = _table()

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _cast(setting: Setting, value: Any) -> Any:
    if value is None or (value == "" and setting.optional):
        if setting.optional:
            return None
        raise ValueError
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
    if cast != cast or (setting.minimum is not None and cast < setting.minimum):
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
            values[setting.name.removeprefix(PREFIX).lower()] = _cast(setting, value)
        except (ValueError, TypeError, KeyError, OverflowError):
            shown = "(hidden)" if setting.secret else repr(value)
            wanted = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[setting.type]
            unit = f" of {setting.unit}" if setting.unit else ""
            least = f", at least {setting.minimum:g}" if setting.minimum is not None else ""
            raise ConfigurationError(f"{setting.name}={shown}: expected {wanted}{unit}{least}") from None
    known = {setting.name for setting in SETTINGS}
    for key in config:
        if isinstance(key, str) and key.startswith(PREFIX) and key not in known:
            raise ConfigurationError(f"{key}: no such setting; `flask chat settings` lists them")
    return Settings(**values)
