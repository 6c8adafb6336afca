"""How a finished run is written: text, state and events at once, inside the transaction that appends its terminal
event.

Raw SQL on the driver's connection, because the tick that calls it speaks to the driver (see log/journal.py).
"""

from __future__ import annotations

import time

from .base import Ending, Fenced, Lease
from .engine import Ask
from .usage import BYTES_PER_TOKEN

_RUN = """
UPDATE flaskchat_runs SET state = ?, last_seq = ?, upstream_closed_ms = ?, ended_at = ?
WHERE id = ? AND state = 'running' AND worker_id = ? AND epoch = ?
"""
_MESSAGE = """
UPDATE flaskchat_messages SET text = text || ?, parts = ?, status = ?, finish_reason = ?, usage = ?, error = ?
WHERE id = ?
"""
_EVENTS = "INSERT INTO flaskchat_run_events (run_id, frames) VALUES (?, ?)"
_CONVERSATION = """
UPDATE flaskchat_conversations SET updated_at = CASE WHEN updated_at > ? THEN updated_at ELSE ? END WHERE id = ?
"""  # by the clock of whoever ends it, and not back behind the database's, by which it was begun
_USED = "UPDATE flaskchat_usage SET tokens = ? WHERE run_id = ?"
_USED_ABOUT = "UPDATE flaskchat_usage SET tokens = tokens + ? WHERE run_id = ?"
_STANDS = "SELECT state, last_seq, worker_id, epoch FROM flaskchat_runs WHERE id = ?"


def write(ask: Ask, lease: Lease, ending: Ending) -> bool:
    """Finish one run. Whose conversation has been deleted meanwhile leaves nothing.

    :param ask: the driver's connection, within the transaction.
    :param lease: under which the run was started; it must still be the run's.
    :returns: False where nothing was left to be finished, because it has been deleted.
    :raises Fenced: the run has been ended by somebody else.
    """
    now = time.time()
    ask(_CONVERSATION, (now, now, ending.conversation_id))  # first, as deleting it does: neither waits for the other
    changed = ask(
        _RUN,
        (
            ending.state, ending.last_seq, ending.upstream_closed_ms, now, ending.run_id, lease.worker_id, lease.epoch,
        ),
    ).rowcount  # fmt: skip
    if changed != 1:
        if ask(_STANDS, (ending.run_id,)).fetchone() is None:
            return False
        raise Fenced(ending.run_id)
    ask(
        _MESSAGE,
        (
            ending.text, ending.parts.decode(), ending.state, ending.finish_reason,
            ending.usage.decode() if ending.usage else None, ending.error.decode() if ending.error else None,
            ending.message_id,
        ),
    )  # fmt: skip
    if ending.tokens is not None:
        ask(_USED, (ending.tokens, ending.run_id))
    else:  # stopped, say: about as many as the question was, which stands there, and what was written
        about = (len(ending.text.encode()) + len(ending.parts)) // BYTES_PER_TOKEN
        ask(_USED_ABOUT, (about, ending.run_id))
    ask(_EVENTS, (ending.run_id, ending.frames))
    return True


def write_once(ask: Ask, lease: Lease, ending: Ending) -> None:
    """As `write`, for the run's own worker, which has made sure of its lease within this transaction: what it finds
    ended as it would have ended it was its own doing, and the answer to that commit was lost.
    """
    try:
        write(ask, lease, ending)
    except Fenced:
        found = ask(_STANDS, (ending.run_id,)).fetchone()
        if found is None or tuple(found) != (ending.state, ending.last_seq, lease.worker_id, lease.epoch):
            raise
