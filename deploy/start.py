"""Say which model answers and where, then become gunicorn. Run by deploy/run, the container and the systemd unit.

The model is chosen here, once, and handed to the workers by the environment; so they agree, and none of them probes.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flaskchat.errors import ConfigurationError  # noqa: E402
from flaskchat.log.link import where  # noqa: E402
from flaskchat.state import State  # noqa: E402
from flaskchat.store.kinds import open_database  # noqa: E402
from flaskchat.store.sqlite import sqlite_module  # noqa: E402


def fail(words: str) -> None:
    raise SystemExit(f"flaskchat: {words}")


def check_options(options: list[str]) -> None:
    """Refuse what gunicorn does not know, before anything is said, and what would have it listen elsewhere."""
    from gunicorn.config import Config  # here: it reads WEB_CONCURRENCY, which has to be a number by then

    parser = Config().parser()
    parser.error = lambda message: fail(f"{message} (`gunicorn --help` lists its options)")
    given = parser.parse_args(options)
    if given.bind:
        fail(f"--bind {given.bind[0]}: expected HOST and PORT in its place: HOST=0.0.0.0 PORT=9000 ./deploy/run")


def check_address(host: str, port: str) -> None:
    """Find out in words what gunicorn would report as a failed bind, five times over."""
    if not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"PORT={port!r}: expected a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        fail(f"HOST={host!r}: expected an address of this machine: {error.strerror}")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = int(port) + 1 if int(port) < 65535 else 8000
            fail(f"port {port} on {host} is taken by another program. Choose another: PORT={other} ./deploy/run")
        if error.errno == errno.EACCES:
            fail(f"port {port} is the administrator's alone. Choose one above 1023: PORT=8000 ./deploy/run")
        fail(f"cannot listen on {host}, port {port}: {error.strerror}")


def check_servers(state: State) -> None:
    """What every worker would find out by itself, with a traceback each: a driver that is missing, a wrong address.

    :raises ConfigurationError: connects to nothing yet, so that a server may come later than this one.
    """
    if state.database_url.startswith("sqlite"):
        sqlite_module()  # the file is the workers' to make, as their user
    else:
        open_database(state.database_url, timeout=1)
    if state.settings.redis_url is not None:
        where(state.settings.redis_url)


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):  # deploy/run has it, where nothing is installed yet
        os.execv("/bin/sh", ["sh", str(ROOT / "deploy" / "run"), "--help"])  # noqa: S606  this checkout's own file
    os.chdir(ROOT)  # as gunicorn.conf.py does: a relative path means the same here and in the workers
    workers = os.environ.get("WEB_CONCURRENCY") or "2"
    if not workers.isdecimal() or not int(workers):
        fail(f"WEB_CONCURRENCY={workers!r}: expected the number of workers, at least 1")
    # also where it was set to nothing, as a compose file may: gunicorn would read that as a number
    os.environ["WEB_CONCURRENCY"] = workers
    check_options(sys.argv[1:])
    try:
        check_options(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")))
    except ValueError as error:
        fail(f"GUNICORN_CMD_ARGS: {error}")
    host = os.environ.get("HOST") or "127.0.0.1"
    port = os.environ.get("PORT") or "8000"
    if os.environ.get("LISTEN_FDS"):
        address = "the socket that systemd handed over"
    elif host.startswith("unix:"):
        address = host
    else:
        check_address(host, port)
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        address = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
        if shown != host:
            address += ", and on every other address of this machine"
    try:
        from wsgi import app  # makes it, so that a wrong setting is told here and not by every worker

        check_servers(app.extensions["flaskchat"])
    except ConfigurationError as error:
        fail(str(error))
    except SystemExit:  # it has said why
        raise SystemExit(1) from None
    model = app.extensions["flaskchat.answering"]
    if words := app.extensions["flaskchat"].registry.taken_name():
        print(f"flaskchat: {words}", file=sys.stderr)  # the workers, for whom the model is set below, cannot tell
    print(f"flaskchat answers with {model.model}, {model.why}", flush=True)
    print(f"flaskchat listens on {address}", flush=True)
    os.environ.update({"FLASKCHAT_MODEL": model.model, **model.settings})
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "deploy" / "gunicorn.conf.py"), *sys.argv[1:]]
    os.execv(sys.executable, gunicorn)  # noqa: S606  the same process, so signals and systemd's sockets reach it


if __name__ == "__main__":
    main()
