"""In which order, and side by side with what, `tests/run` hands out the files.

A file is run by one process, of which there are four (`-n 4`). On two processors no more than three of them compute:
the last one takes the files that mostly wait, for a lease that runs out, a proxy's patience, a server that stands
still. When either kind is used up, whoever is free takes of the other.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

WAITING = (
    "test_node_faults", "test_chaos", "test_clients", "test_rechecks", "test_proxies", "test_redis", "test_nodes",
    "test_failover", "test_frozen", "test_clock", "test_redis_log", "test_redis_away", "test_redis_places", "test_demo",
    "test_tls",
)  # fmt: skip
"""Files that take long and leave the processors idle for most of it, the longest first."""

COMPUTING = (
    "test_promises", "test_tabs", "test_deploys", "test_readers", "test_axe", "test_page", "test_bench", "test_outage",
    "test_database_faults", "test_races", "test_broken_models", "test_kill", "test_queue", "test_markdown",
    "test_deploy", "test_conversation", "test_openapi", "test_sidebar", "test_watch", "test_shell", "test_host",
    "test_frontend_unit", "test_log_machine", "test_sweep", "test_backup", "test_slow_attacks", "test_outlet",
    "test_streaming", "test_limits", "test_writes", "test_faults", "test_wal", "test_postgres",
    "test_hardening_requests", "test_transfer", "test_http_source", "test_store", "test_types", "test_wire",
)  # fmt: skip
"""The others that take long, the longest first: one begun last would be waited for alone."""


def in_order(items: list[pytest.Item]) -> None:
    """Put the files that take long before the others; within a file nothing moves."""
    rank = {name: number for number, name in enumerate((*WAITING, *COMPUTING))}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


class Lanes(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """xdist's `--dist loadfile`, but that the last process begins with other files than the rest."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        waits = node is self.nodes[-1]
        for scope in self.workqueue:
            if (PurePath(scope).stem in WAITING) is waits:
                self.workqueue.move_to_end(scope, last=False)  # it takes the first one
                break
        super()._assign_work_unit(node)
