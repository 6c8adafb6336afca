"""Starts the processes that take part in a measurement, and ends them, whatever happens to it.

Each has a pipe as its standard input and ends when that does. So none is left when this process is killed either.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import FlaskChatError
from .loop import raise_files

LOOPBACK = "127.0.0.1"
START = 60.0
"""Seconds that a server may take to answer for the first time."""
PATIENCE = 6.0
"""Seconds that a process may take to end by itself."""

Progress = Callable[[int], None]


class CannotMeasure(FlaskChatError):
    """What was started for a measurement did not do what it should."""


def listener() -> socket.socket:
    """A socket that listens on a free port of the loopback. Handed to a child, so that no other process can take it."""
    sock = socket.socket()
    sock.bind((LOOPBACK, 0))
    sock.listen(2048)
    return sock


def environment() -> dict[str, str]:
    """Children find the same modules as this process, and no options that are meant for another gunicorn."""
    without = {key: value for key, value in os.environ.items() if key != "GUNICORN_CMD_ARGS"}
    return {**without, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}


class Process:
    """:param command: what to start.
    :param folder: where it runs, and where what it says on its standard error goes.
    :param inherit: a descriptor that it gets under the same number.
    :param variables: its environment; absent: `environment()`.
    """

    def __init__(
        self, command: list[str], folder: Path, *, inherit: int | None = None, stdout: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.log_path = folder / f"{time.monotonic_ns()}.log"
        self.began = time.monotonic()
        with self.log_path.open("wb") as log:
            # A session of its own: the terminal sends Ctrl-C to us alone, and we end the others in order.
            self.popen = subprocess.Popen(  # noqa: S603
                command, cwd=folder, env=variables or environment(), stdin=subprocess.PIPE, stdout=stdout or log,
                stderr=log, pass_fds=[] if inherit is None else [inherit], start_new_session=True,
            )  # fmt: skip
        self.pid = self.popen.pid

    def log(self) -> str:
        """The end of what it has said."""
        return self.log_path.read_text(errors="replace")[-3000:]

    def until_it_answers(self, port: int, ready: Callable[[], bool] = lambda: True) -> float:
        """:param ready: asked before each try.
        :returns: seconds since it was started.
        :raises CannotMeasure: it does not start.
        """
        while self.popen.poll() is None and time.monotonic() < self.began + START:
            if ready() and answers(port):
                return time.monotonic() - self.began
            time.sleep(0.01)
        raise CannotMeasure(f"process {self.pid} does not start:\n{self.log()}")

    def end(self) -> None:
        """Ask it to end; those with a loop of ours do so by themselves."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self.popen.stdin is not None
            self.popen.stdin.close()
        self.end()
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


class Child(Process):
    """A process of ours with a `Loop`.

    :param module: `model` or `load`.
    """

    def __init__(self, module: str, argument: int, folder: Path, *, inherit: int | None = None) -> None:
        command = [sys.executable, "-m", f"flaskchat.bench.{module}", str(argument)]
        super().__init__(command, folder, inherit=inherit, stdout=subprocess.PIPE)
        self._said = b""

    def ask(self, command: str, value: object = None, *, seconds: float = 30, progress: Progress | None = None) -> Any:
        """The answer to a command.

        :param seconds: to wait for it.
        :raises CannotMeasure: it has died, or does not answer.
        """
        stdin: IO[bytes] | None = self.popen.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):  # that it has died shows below
            stdin.write(json.dumps({command: value}).encode() + b"\n")
            stdin.flush()
        until = time.monotonic() + seconds
        while True:
            answer = json.loads(self._line(until))
            if "progress" not in answer:
                return answer
            if progress is not None:
                progress(answer["progress"])

    def _line(self, until: float) -> bytes:
        assert self.popen.stdout is not None
        fd = self.popen.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
                raise CannotMeasure(f"process {self.pid} did not answer:\n{self.log()}")
            data = os.read(fd, 1 << 20)
            if not data:
                raise CannotMeasure(f"process {self.pid} has died:\n{self.log()}")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line


class Server(Process):
    """gunicorn with the project in `folder` (see `project`)."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        with listener() as sock:
            self.port: int = sock.getsockname()[1]
            command = [
                sys.executable, "-m", "gunicorn", "-c", str(Path(__file__).with_name("serving.py")),
                "--chdir", str(folder), "-w", str(workers), "-b", f"fd://{sock.fileno()}",
            ]  # fmt: skip
            super().__init__(command, folder, inherit=sock.fileno())
        self._workers = folder / "workers"
        self._count = workers

    def wait(self) -> float:
        """Until all its workers serve and it has answered; as `until_it_answers`."""
        return self.until_it_answers(self.port, lambda: len(self.workers()) == self._count)

    def workers(self) -> list[int]:
        return [int(path.name) for path in self._workers.iterdir()]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGQUIT)  # at once: what it holds goes with its folder

    def close(self) -> None:
        super().close()
        until = time.monotonic() + PATIENCE  # workers leave by themselves when gunicorn has gone
        for pid in self.workers():
            while _alive(pid):
                if time.monotonic() > until:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    break
                time.sleep(0.02)


def answers(port: int, path: str = "/healthz") -> bool:
    """Whether a server answers 200 there."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def place() -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """A folder, and a stack that ends what is put on it; both are gone afterwards, also after SIGTERM and Ctrl-C."""
    raise_files()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        with tempfile.TemporaryDirectory(prefix="flaskchat-bench-") as name, contextlib.ExitStack() as stack:
            try:
                yield Path(name), stack
            finally:
                for number in before:  # a second Ctrl-C is not to stop the ending of the others
                    signal.signal(number, signal.SIG_IGN)
                stack.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def stand_in(folder: Path) -> Iterator[tuple[Child, str]]:
    """The stand-in for a model's server, and the address to give as OpenAI's."""
    with listener() as sock:
        child = Child("model", sock.fileno(), folder, inherit=sock.fileno())
        port = sock.getsockname()[1]
    with contextlib.closing(child):
        yield child, f"http://{LOOPBACK}:{port}/v1"
