"""How gunicorn serves the project that is measured: gunicorn reads this file as its configuration.

The options of deploy/gunicorn.conf.py that have a part in what a stream costs, without its limit on connections.
"""

# Before any other import, as in every project: what is imported earlier keeps the blocking calls.
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent import socket  # noqa: E402

wsgi_app = "bench_project:app"
worker_class = "gevent"
worker_connections = max(100, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)
backlog = 2048
timeout = 120
graceful_timeout = 5
keepalive = 6
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
preload_app = False
control_socket_disable = True
errorlog = "-"
accesslog = None


def post_worker_init(worker: Any) -> None:
    """Open the chat's part of this worker, say that it is there, and look out for the end of who asked for it."""
    worker.wsgi.extensions["flaskchat"].start()
    gevent.spawn(leave_with_whoever_started_us, worker.ppid)
    (Path.cwd() / "workers" / str(os.getpid())).touch()


def leave_with_whoever_started_us(master: int) -> None:
    """Standard input is a pipe that nobody writes to: it can be read when the other end is gone."""
    socket.wait_read(0)
    if os.getppid() == master:
        os.kill(master, signal.SIGQUIT)
