"""Signals that a host may connect to. The sender is the application; handlers run in a task of their own, inside its
context.

    from flaskchat import run_ended

    @run_ended.connect_via(app)
    def bill(sender, run_id, owner, model, state, usage, **extra):
        ...
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

run_started = _signals.signal("flaskchat-run-started")
"""A run began. Sent with `run_id`, `conversation_id`, `owner`, `model`."""

run_ended = _signals.signal("flaskchat-run-ended")
"""A run of this worker ended and is in the store. Sent with `run_id`, `conversation_id`, `owner`, `model`, `state` and
`usage` (None unless it is done and its model has counted). Not sent for the runs of a worker that is killed, or held up
for so long that others take it for gone: those are ended elsewhere, without a signal."""
