"""Fixtures that start real processes: gunicorn with the test application, and the misbehaving model."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flaskchat.config import Settings
from tests.backends import READY, SQLITE, Backend, PostgresServer, RedisServer, Servers, opened
from tests.lanes import Lanes, in_order
from tests.programs import free_port
from tests.rooms import Rooms, where, worker_rooms
from tests.server import badmodel
from tests.server.client import Client

ROOT = Path(__file__).parent.parent
WARM = ROOT / "tests" / "server" / "warm.py"
KEPT_ALIVE = ["--keep-alive", "10"]
"""Seconds more than gunicorn's own: a connection to a certain worker is to be there still when a busy test uses it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", default="sqlite", help="Where servers keep their data in tests that name none: `sqlite+redis`."
    )
    parser.addoption(
        "--long", action="store_true", help="Faults and races in full: hundreds of seeds and minutes of load."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--long") and not config.getoption("timeout", None):
        config.option.timeout = 7200
    config.addinivalue_line(
        "markers",
        "backends(*names, long=()): run the test on each of these backends (see tests/backends.py), with --long also "
        "on those; without it on `sqlite`.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("backends")
    wanted = [name for name in ("backend", "shared_backend") if name in metafunc.fixturenames]
    if marker is None or not wanted:
        return
    names = [*marker.args, *(marker.kwargs.get("long", ()) if metafunc.config.getoption("--long") else ())]
    values = [[name] * len(wanted) for name in names if name in READY]
    metafunc.parametrize(wanted, values, indirect=True, ids=[value[0] for value in values])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        markers = [(item, item.get_closest_marker("backends")) for item in items]
        others = [item for item, marker in markers if marker is not None and not marker.args]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    in_order(items)


@pytest.hookimpl(optionalhook=True)  # of xdist's, which need not take part
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes | None:
    return Lanes(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether tests that have a long form take it (`tests/run --long`); otherwise each takes seconds."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def seed(request: pytest.FixtureRequest, long: bool) -> int:
    """What chance is drawn from; printed. In the short form the same in each run: what fails once in a hundred seeds is
    to be found by whoever looks for it.
    """
    found = random.randrange(1 << 30) if long else zlib.crc32(request.node.name.encode()) >> 2
    print("seed", found)
    return found


@pytest.fixture(scope="session")
def database_servers() -> Iterator[Servers]:
    """PostgreSQL and Redis, each started when a test first wants it."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def postgres(database_servers: Servers) -> PostgresServer:
    """A PostgreSQL server; `postgres.database()` gives a fresh database."""
    return database_servers.postgres


@pytest.fixture
def redis_server(database_servers: Servers) -> RedisServer:
    """A Redis server with the append-only file; `redis_server.prefix()` gives a prefix for keys."""
    return database_servers.redis


@pytest.fixture(scope="module")
def shared_backend(request: pytest.FixtureRequest, database_servers: Servers) -> Iterator[Backend]:
    """As `backend`, for a server that the tests of a module share."""
    with opened(getattr(request, "param", request.config.getoption("--backend")), database_servers) as found:
        yield found


@pytest.fixture
def backend(request: pytest.FixtureRequest, database_servers: Servers) -> Iterator[Backend]:
    """Where the test's servers keep their data: fresh, and the same for all that it starts.

    SQLite, but for tests marked with `pytest.mark.backends(...)`: those run once on each that is named.
    """
    with opened(getattr(request, "param", request.config.getoption("--backend")), database_servers) as found:
        yield found


@pytest.fixture
def make(backend: Backend, tmp_path: Path) -> Iterator[Callable[[], Rooms]]:
    """Makes the rooms of workers on the test's backend, in this process and without a server."""
    settings = Settings()
    if backend.redis is not None:
        settings = Settings(redis_url=backend.redis.url, redis_prefix=backend.prefix)
    with worker_rooms(where(backend, tmp_path), settings) as make:
        yield make


@pytest.fixture
def two(make: Callable[[], Rooms]) -> tuple[Rooms, Rooms]:
    return make(), make()


class Server:
    """gunicorn with the test application, in a process group of its own."""

    def __init__(
        self, folder: Path, settings: dict[str, object], *, workers: int, kind: str, app: str, args: list[str],
        backend: Backend = SQLITE,
    ) -> None:  # fmt: skip
        self.folder, self.backend, self._count = folder, backend, workers
        self._clients: list[Client] = []
        self._family: list[psutil.Process] | None = None
        """Its workers, once it has been told to leave."""
        self.port = free_port()
        self.log_path = folder / f"server-{self.port}.log"
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FLASKCHAT_", "OPENAI_", "ANTHROPIC_"))
        }
        environment |= {key: str(value) for key, value in {**backend.settings(), **settings}.items()}
        environment |= {"TEST_INSTANCE": str(folder / "instance"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._environment = environment
        self._command = [
            sys.executable, "-m", "gunicorn", "-k", kind, "-w", str(workers), "-b", f"127.0.0.1:{self.port}",
            "--no-control-socket", *(("-c", str(WARM)) if kind == "gevent" else ()), *(args or KEPT_ALIVE), app,
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            self.start()
        except BaseException:
            self.close()  # nobody else knows of it yet
            raise

    def start(self) -> None:
        """Also once more, after it was killed."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 120  # a machine with other work has been seen to take 20
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the server died:\n{self.log()}")
            try:
                stream = self.client(timeout=10).get("/healthz")
                stream.close()
                if stream.status == 200 and len(self.workers()) >= self._count:  # they are begun one after the other
                    return
            except OSError:
                pass
            time.sleep(0.03)
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def client(self, timeout: float = 30.0) -> Client:
        client = Client(self.port, timeout=timeout)
        self._clients.append(client)
        return client

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def workers(self) -> list[int]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
        return found

    def leave(self) -> None:
        """Tell it to leave. Whoever has several tells them all, and waits for each of them in `close`."""
        for client in self._clients:
            client.close()
        here = self.process.poll() is None
        self._family = psutil.Process(self.process.pid).children(recursive=True) if here else []
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self._family is None:
            self.leave()
        children = self._family or []
        for _ in range(6):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
                break
            # a worker that was just being started has not heard it: gunicorn tells each but once
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()
        else:
            self.process.kill()
            self.process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def holds_of_hub(log: str) -> list[str]:
    """What the watch has found in a server's log: each hold with its stack."""
    return re.findall(r"^[^\n]*the hub (?:was|is) held[^\n]*\n(?:  [^\n]*\n?)*", log, re.MULTILINE)


@pytest.fixture
def serve(tmp_path: Path, backend: Backend) -> Iterator[Callable[..., Server]]:
    """Starts servers; each gets the settings it is called with. Prints a server's log when its test failed.

    Whatever holds the hub of one fails the test, wherever it comes from: every test is one of P12. One that does so on
    purpose says `holds_hub=True`.
    """
    servers: list[Server] = []
    held_on_purpose: list[Server] = []

    def start(
        settings: dict[str, object] | None = None, *, workers: int = 2, kind: str = "gevent",
        app: str = "tests.server.app:app", args: list[str] | None = None, holds_hub: bool = False,
    ) -> Server:  # fmt: skip
        values: dict[str, object] = {"FLASKCHAT_MODEL": "count", **(settings or {})}
        server = Server(tmp_path, values, workers=workers, kind=kind, app=app, args=args or [], backend=backend)
        servers.append(server)
        if holds_hub:
            held_on_purpose.append(server)
        return server

    yield start
    held = []
    for server in servers:
        server.leave()
    for server in servers:
        server.close()
        print(f"--- log of the server at {server.port}\n{server.log()}")
        if server not in held_on_purpose:
            held += holds_of_hub(server.log())
    assert not held, "something held the hub (or the test says `holds_hub`):\n" + "\n".join(held)


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """Two gevent workers with the test application; the default model is `count`."""
    return serve()


@pytest.fixture(scope="session")
def model() -> Iterator[badmodel.Running]:
    """The misbehaving model; a question's JSON says how it answers (see tests/server/badmodel.py)."""
    with badmodel.running() as running:
        yield running


def asking(model: badmodel.Running) -> dict[str, object]:
    """Settings with which the misbehaving model is the default one, and is asked for replies alone."""
    settings = {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1"}
    return {**settings, "FLASKCHAT_TITLES": "no"}  # a question for a title would be counted as well


@pytest.fixture
def chat_server(serve: Callable[..., Server], model: badmodel.Running) -> Server:
    """Two gevent workers whose default model is the misbehaving one."""
    return serve(asking(model))
