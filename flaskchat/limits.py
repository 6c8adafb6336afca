"""How many streams an owner and an address may have open, and how fast an address may open them.

Streams are counted over all workers of the host and in memory (see places.py), or over all nodes where they share a
PostgreSQL (see nodes.py); how many are opened in a second is always the host's to count. What is
counted where a run begins (replies at once, messages a minute, tokens a day) is counted by the store, in the
transaction that begins it: see store/usage.py. What one worker can hold is `Readers.admit`'s and `Runs.start`'s to say.

Deliberate choices; do not change one without reading why:

 1. A client that comes back is never refused because nobody has noticed yet that it was gone: a phone that lost its
    network is noticed after half a minute. Where there is no place for it, the oldest stream of the same owner and run
    gives way, on whatever worker it is. So the limit holds, and whoever resumes is let in.
 2. It is not counted among those that an address opens in a second either: after a deploy all readers behind one
    address come back together.
 3. A second is the clock's: what was counted in the one before has other keys, so nothing has to be given back in time.
 4. An IPv6 address is its network's: whoever has one address has 2^64 of them. A client without an address (a Unix
    socket) is not counted by it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from . import tasks
from .config import Settings
from .errors import TooMany
from .log.base import Leave
from .nodes import Nodes, SharedPlace
from .places import Place, Places

PATIENCE = 3.0
"""Seconds that somebody who comes back waits for the stream before to give way: refused, they would wait as long."""
ASK_AGAIN = 0.5
"""Seconds after which they ask once more: the place that was made may have been taken by who came later."""
LOOK = 0.02
PASSING = frozenset({"HTTP_LAST_EVENT_ID", "HTTP_ACCEPT", "HTTP_CONTENT_LENGTH", "HTTP_REFERER"})
"""Headers that say nothing of who asks, and differ from request to request."""


class Visitor:
    """The client of one stream: who it is, where it is, and the places it has taken."""

    __slots__ = ("address", "browser", "entered", "environ", "owner", "places", "returning", "since", "sock")

    def __init__(
        self, owner: str, *, address: str | None = None, sock: Any = None, environ: dict[str, Any] | None = None
    ) -> None:
        """:param address: as `network` makes it.
        :param sock: the client's socket where the server gives it, to be watched and bounded.
        :param environ: what its request brought, where who it is may change while the stream lives (rechecks.py).
        """
        self.owner = owner
        self.address = address
        self.sock = sock
        self.environ = environ
        self.browser: object = None
        """The same for streams of which one need not be asked twice who their reader is."""
        if environ is not None:
            headers = ((name, value) for name, value in environ.items() if name.startswith("HTTP_"))
            self.browser = owner, frozenset(item for item in headers if item[0] not in PASSING)
        self.since = time.monotonic()
        """When it was found out who it is."""
        self.returning = False
        """Whether it followed this run before."""
        self.entered = False
        """Whether it holds the places that it needs, which may be none."""
        self.places: list[Place | SharedPlace] = []

    def meant(self, leave: Leave, run_id: str) -> bool:
        """Whether its stream, which follows this run, is one of those that are to end."""
        return (
            self.owner == leave.owner
            and leave.run_id in ("", run_id)
            and self.since < leave.here()
            and self.entered
        )

    def release(self) -> None:
        """Give the places back; repeating it changes nothing."""
        self.entered = False
        while self.places:
            self.places.pop().release()


def bound(sock: Any, *, send_buffer: int, stall: float) -> None:
    """Let a client that does not read, or is gone, hold little of the kernel's memory and not for long.

    :param stall: seconds that what was sent may be unacknowledged.
    """
    with contextlib.suppress(OSError):  # a Unix socket knows neither TCP nor, behind a proxy, a client that stalls
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall * 1000))


def network(address: str | None) -> str | None:
    """What an address is counted under: itself, or the /64 network that it is in; None for what is no address."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False))
        found = found.ipv4_mapped
    return str(found)


class Limits:
    """One worker's side of them."""

    def __init__(self, settings: Settings, places: Places, nodes: Nodes | None = None) -> None:
        """:param nodes: count streams where there are several hosts."""
        self._per_owner = settings.max_streams_per_owner
        self._per_address = settings.max_streams_per_address
        self._per_second = settings.connections_per_second
        self._places = places
        self._streams = nodes or places
        self._seconds: deque[tuple[int, Place]] = deque()
        """What was counted in which second, oldest first."""

    def enter(self, visitor: Visitor) -> None:
        """Take the places of one stream.

        :raises TooMany: 429, with `retry_after`; nothing is held then.
        """
        if visitor.entered:
            return
        if not visitor.returning:
            self._count(visitor.address)
        try:
            self._take(
                visitor, "owner", visitor.owner, self._per_owner,
                "As many streams as one may have ({most}) are open already. Close a page, or wait a moment.",
            )
            self._take(
                visitor, "address", visitor.address, self._per_address,
                "As many streams as one address may have ({most}) are open from yours. Try again in a moment.",
            )
        except BaseException:  # too many; or a request whose time was over while it waited for the database
            visitor.release()
            raise
        visitor.entered = True

    def enter_again(self, visitor: Visitor, make_room: Callable[[], object]) -> None:
        """As `enter`, for one that may have been here before.

        :param make_room: asks the stream before to give way.
        """
        try:
            self.enter(visitor)
            return
        except TooMany:
            if not visitor.returning:
                raise
        asked_at, until = -math.inf, time.monotonic() + PATIENCE
        while True:
            if time.monotonic() - asked_at > ASK_AGAIN:
                make_room()  # of streams that were there before this visitor, so that those who come together let be
                asked_at = time.monotonic()
            try:
                self.enter(visitor)
                return
            except TooMany:
                if time.monotonic() > until:
                    raise
            tasks.sleep(LOOK)

    def _take(self, visitor: Visitor, kind: str, name: str | None, most: int, words: str) -> None:
        if not most or not name:
            return
        place = self._streams.take(f"{kind} {name}", most)
        if place is None:
            raise TooMany(words.format(most=most), code="too_many_streams", retry_after=2)
        visitor.places.append(place)

    def _count(self, address: str | None) -> None:
        if not self._per_second or not address:
            return
        second = int(time.monotonic())  # the host's clock, the same in all its processes
        while self._seconds and self._seconds[0][0] < second:
            self._seconds.popleft()[1].release()
        place = self._places.take(f"second {second} {address}", self._per_second)
        if place is None:
            raise TooMany("Too many new streams from your address at once.", code="too_many_connections", retry_after=1)
        self._seconds.append((second, place))
