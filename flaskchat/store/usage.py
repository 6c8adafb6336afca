"""What an owner has used: replies at once, messages in the last minute, tokens in the last day.

Looked at in the transaction that begins a run, so it is exact over all workers: SQLite has one writer. A running reply
counts as long as its run does; when its worker dies, the sweep ends it, within 15 s.

There is a row for each message in a table of its own, without its text: what was used must not be forgotten because the
conversation was deleted. Rows older than a day say nothing any more and are removed. Nothing is written down where no
limit asks for it.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import TooMany
from .base import Begun
from .schema import runs, usage

MINUTE = 60.0
DAY = 86400.0
BYTES_PER_TOKEN = 4
"""Of text, where the model does not say how many tokens it was."""

# The upper end is for a clock that was set back: what lies in the future now must not count for as long.
_WITHIN = sa.and_(
    usage.c.owner == sa.bindparam("who"), usage.c.at > sa.bindparam("since"), usage.c.at <= sa.bindparam("now")
)
_RUNNING = (
    sa.select(sa.func.count()).select_from(runs).where(runs.c.owner == sa.bindparam("who"), runs.c.state == "running")
)
_NTH_NEWEST = (
    sa.select(usage.c.at)
    .where(_WITHIN)
    .order_by(usage.c.at.desc())
    .limit(1)
    .offset(sa.bindparam("before", type_=sa.Integer))
)
_TOKENS = sa.select(sa.func.coalesce(sa.func.sum(usage.c.tokens), 0), sa.func.min(usage.c.at)).where(_WITHIN)
_INSERT = sa.insert(usage)
_OLD = sa.delete(usage).where(usage.c.at < sa.bindparam("until"))


class Quota(NamedTuple):
    """What one owner may use; 0 for as much as they like."""

    runs: int = 0
    messages_per_minute: int = 0
    tokens_per_day: int = 0


NO_QUOTA = Quota()


def check(c: Connection, owner: str, quota: Quota, now: float) -> None:
    """:param now: by the database's clock, as below: several nodes look at the same minute.
    :raises TooMany: 429, with `retry_after`: one more message would be over a limit.
    """
    if quota.runs and c.execute(_RUNNING, {"who": owner}).scalar_one() >= quota.runs:
        many = "One reply is" if quota.runs == 1 else f"{quota.runs} replies are"
        raise TooMany(
            f"{many} being written for you, and no more may be at once. Wait until one has ended, or stop one.",
            code="too_many_runs", retry_after=5,
        )  # fmt: skip
    if quota.messages_per_minute:
        values = {"who": owner, "since": now - MINUTE, "now": now, "before": quota.messages_per_minute - 1}
        first = c.execute(_NTH_NEWEST, values).scalar()
        if first is not None:
            wait = max(1.0, first + MINUTE - now)
            raise TooMany(
                f"At most {quota.messages_per_minute} messages a minute. The next may be sent in {wait:.0f} seconds.",
                code="too_many_messages", retry_after=wait,
            )  # fmt: skip
    if quota.tokens_per_day:
        tokens, first = c.execute(_TOKENS, {"who": owner, "since": now - DAY, "now": now}).one()
        if tokens >= quota.tokens_per_day:
            raise TooMany(
                f"The {quota.tokens_per_day} tokens that may be used in 24 hours are used. Try again later.",
                code="too_many_tokens", retry_after=max(1.0, first + DAY - now),
            )  # fmt: skip


def note(c: Connection, begun: Begun, quota: Quota, now: float) -> None:
    """Write a message down, with about the tokens that its model is asked with; the reply's end puts that right."""
    if quota.messages_per_minute or quota.tokens_per_day:
        asked = sum(len(turn.text) for turn in begun.turns) + len(begun.system_prompt) + len(begun.partial)
        c.execute(
            _INSERT,
            {"run_id": begun.run_id, "owner": begun.owner, "at": now, "tokens": asked // BYTES_PER_TOKEN},
        )


def forget_old(c: Connection, now: float) -> int:
    """Remove what counts no more.

    :returns: how many rows.
    """
    return c.execute(_OLD, {"until": now - DAY}).rowcount
