"""What kind of Redis it is, and whether it would lose what it was given: said in words, once for each server."""

from __future__ import annotations

import logging
from typing import Any

from .base import LogUnavailable
from .link import Link

logger = logging.getLogger("flaskchat")

OLDEST = (6, 2)


class Server:
    def __init__(self) -> None:
        self._seen: str | None = None
        """The run id of the server that was looked at last: another one after each of its starts."""

    def look_at(self, link: Link) -> None:
        """:raises LogUnavailable: it is too old. The connection is closed then: the next one is looked at as well."""
        asked = [[b"INFO", b"server"], *([b"CONFIG", b"GET", name] for name in (b"appendonly", b"maxmemory*"))]
        info, *settings = link.ask(*asked)
        found = {} if isinstance(info, Exception) else _info(info)
        version = found.get("redis_version", "")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if len(numbers) == 2 and numbers < OLDEST:
            link.close()
            raise LogUnavailable(f"this is Redis {version}; 6.2 is needed, or Valkey")
        if found.get("run_id", "") == self._seen:
            return
        self._seen = found.get("run_id", "")
        for line in complaints(settings):
            logger.warning("Redis: %s", line)


def _info(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").split("\r\n")
    return dict(line.split(":", 1) for line in lines if ":" in line)


def complaints(replies: list[Any]) -> list[str]:
    """:param replies: to CONFIG GET of what matters, or errors.
    :returns: what would lose replies, in words.
    """
    if any(isinstance(reply, Exception) for reply in replies):
        return ["this user may not ask for its settings (CONFIG GET): whether it keeps what it is given is not known"]
    flat = [word.decode() for reply in replies for word in reply]
    found = dict(zip(flat[::2], flat[1::2], strict=False))
    wrong = []
    if found.get("appendonly") == "no":
        wrong.append(
            "`appendonly` is no: when it is killed together with a worker, the replies being written there lose what "
            "they had (set `appendonly yes`)"
        )
    policy = found.get("maxmemory-policy", "noeviction")
    if found.get("maxmemory", "0") != "0" and policy != "noeviction":
        wrong.append(
            f"`maxmemory-policy` is {policy}: it may drop replies while they are being written (set `noeviction`)"
        )
    return wrong
