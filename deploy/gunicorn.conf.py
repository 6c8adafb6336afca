"""How gunicorn runs flaskchat. Each line says why. `python deploy/start.py` uses it, and so may any service manager:

    gunicorn -c deploy/gunicorn.conf.py

More options: GUNICORN_CMD_ARGS="--access-logfile -".
"""

# First of all: what is imported before the patch keeps the blocking calls. gunicorn itself patches only later.
from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

# A checkout runs from anywhere.
chdir = str(Path(__file__).resolve().parent.parent)
wsgi_app = "wsgi:app"

# A stream costs neither a thread nor a process, and a greenlet only until it has begun: thousands fit into one worker.
worker_class = "gevent"

# Two, so that one serves while the other is replaced, and a second core is used. gunicorn's own default is one.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)

# Only this machine, unless told otherwise. HOST may also be a socket: unix:/run/flaskchat/flaskchat.sock.
_host = os.environ.get("HOST") or "127.0.0.1"
_port = os.environ.get("PORT") or "8000"
bind = _host if _host.startswith("unix:") else f"[{_host}]:{_port}" if ":" in _host else f"{_host}:{_port}"

# A reply holds two descriptors, its reader's and its model's. The usual soft limit of 1024 would refuse the five
# hundredth, so take what the hard limit allows.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = 65536 if _hard == resource.RLIM_INFINITY else min(_hard, 65536)
if _soft != resource.RLIM_INFINITY and _soft < _files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_files, _hard))

# Connections of one worker. Above it new ones wait without a word, health checks and Stop too; so flaskchat admits
# fewer streams than this (FLASKCHAT_MAX_STREAMS) and answers the next one with 503.
worker_connections = min(2000, max(100, (_files - 200) // 2))

# Connections that wait while all workers are busy or being replaced.
backlog = 2048

# Seconds a worker that is told to leave may take; then it is killed. Never reached, because its replies get less
# (FLASKCHAT_DRAIN, 5 s). A service manager's own limit (TimeoutStopSec) must lie above this.
graceful_timeout = 30

# Not how long a request may take: how long a worker may give no sign of life at all before it is killed.
timeout = 30

# Seconds an idle connection is kept, and also how long a client may take to send its headers. Longer than nginx keeps
# its side (keepalive_timeout in nginx.conf), so that nginx never writes into a closed connection; and hardly longer
# than replies are given (FLASKCHAT_DRAIN): a worker that leaves stays until its idle connections have ended too.
keepalive = 6

# The worker's sign of life is a file; on a disk the write of it can wait.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# Never replace a worker by count: a draining worker's place stays empty until its last stream has ended.
max_requests = 0

# Every worker opens its own database and sockets, after the fork; and a reload brings new code in.
preload_app = False

# Nobody needs more of a request's head, and it is read before any check of ours.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

# `X_Forwarded_For` would reach the application as `X-Forwarded-For` does, past a proxy that takes only the second out.
header_map = "refuse"

# gunicorn would take where the application is mounted from a header of this name, which many proxies pass on as clients
# send it; then anybody could move it, and the addresses in its pages with it.
forwarder_headers = ""

# Whose X-Forwarded-Proto and the like are believed: a proxy on this machine, nobody else. (Client addresses are
# another matter: FLASKCHAT_TRUSTED_PROXIES.)
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"

# The management socket of gunicorn 25.1 and later: one more way in, at a path that two instances would share.
control_socket_disable = True

# Errors to standard error, for the service manager to keep. No line per request: addresses are personal data.
errorlog = "-"
accesslog = None


def post_worker_init(worker: Any) -> None:
    """Start the runtime now, not at the first request: it ends what a killed worker left behind."""
    # Ctrl-C comes to every process of a terminal, and once more from the master, as SIGQUIT; either would end a worker
    # in the middle of what it does, with a traceback. It leaves as it does at SIGTERM, which takes no longer than
    # FLASKCHAT_DRAIN.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, worker.handle_exit)
    from flaskchat.errors import ConfigurationError  # not above: a reload would find the old code in the master

    try:
        worker.wsgi.extensions["flaskchat"].start()
    except ConfigurationError as error:
        # One line in place of gunicorn's traceback; 3 tells the master that another worker need not try.
        worker.log.error("flaskchat: %s", error)
        raise SystemExit(3) from None
    # What is loaded by now stays for good, and a stream leaves hardly a cycle behind: so the collector need not go
    # through all of it again and again, which is a tenth of the work under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
