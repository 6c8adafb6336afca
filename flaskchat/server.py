"""What serves us: gunicorn with which worker, and what follows from it. Reads, never patches."""

from __future__ import annotations

import logging
import signal
from typing import Any

from .errors import ConfigurationError
from .outlet import Offer

logger = logging.getLogger("flaskchat")

THREADS_UNKNOWN = 64
"""Streams at most under a server of which we know nothing (`flask run` starts a thread for each request)."""


def gunicorn_worker() -> Any:
    """The gunicorn worker of this process, or None.

    gunicorn installs its worker's own method as the handler of SIGTERM, before it loads the application; the method
    knows the worker. Its `alive` turns false at SIGTERM as well as at `max_requests` and when its parent is gone.
    """
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if hasattr(worker, "alive") and hasattr(worker, "cfg") else None


def refuse_sync(worker: Any) -> None:
    """:raises ConfigurationError: the worker serves one request at a time, so one stream would be all it does."""
    module = type(worker).__module__
    threads = getattr(worker.cfg, "threads", 1)
    if module == "gunicorn.workers.sync" or (module == "gunicorn.workers.gthread" and threads < 2):
        raise ConfigurationError(
            "gunicorn's sync worker serves one request at a time, so one open stream would stop everything else. "
            "Start it with `gunicorn -k gevent` (worker_class = 'gevent'), or with `-k gthread --threads 32`."
        )


def warn_of_drain(worker: Any, drain: float) -> None:
    """Log where gunicorn kills a worker before its replies have had their time: those then end without a word."""
    patience = getattr(worker.cfg, "graceful_timeout", None)
    if patience is not None and drain >= patience:
        logger.warning(
            "FLASKCHAT_DRAIN=%g is not below gunicorn's graceful_timeout of %g s, at which a worker that leaves is "
            "killed with its replies: make one smaller or the other larger",
            drain, patience,
        )  # fmt: skip


def offer(environ: dict[str, Any], start_response: Any) -> Offer | None:
    """The connection of a response that `start_response` has begun and whose head has not been sent, where the server
    can be relieved of it; None where it must go on iterating.
    """
    response: Any = getattr(start_response, "__self__", None)
    sock = environ.get("gunicorn.socket")
    if not (_is(response, "gunicorn.http.wsgi", "Response") and _is(sock, "gevent._socket3", "socket")):
        return None
    if getattr(response.cfg, "protocol", "http") != "http" or environ["REQUEST_METHOD"] == "HEAD":
        return None
    response.force_close()
    return Offer(sock, response.chunked)


def _is(thing: object, module: str, name: str) -> bool:
    """Of exactly this class, without importing it: a subclass may do something else."""
    return type(thing).__module__ == module and type(thing).__name__ == name


def waiting(worker: Any) -> int:
    """Requests that may wait for their clients at once: half of what the worker has for all routes."""
    if worker is None:
        return THREADS_UNKNOWN
    if type(worker).__module__ == "gunicorn.workers.gthread":
        return max(1, int(worker.cfg.threads) // 2)
    return max(1, int(worker.cfg.worker_connections) // 2)


def capacity(worker: Any) -> int:
    """Streams that fit, with places left for health checks, Stop and the host's own routes."""
    if worker is None:
        return THREADS_UNKNOWN
    if type(worker).__module__ == "gunicorn.workers.gthread":
        threads = int(worker.cfg.threads)
        return max(1, threads - max(1, threads // 10))
    connections = int(worker.cfg.worker_connections)
    return max(1, connections - max(2, connections // 10))
