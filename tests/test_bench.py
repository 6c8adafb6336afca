"""`flask chat bench` with real processes: its figures, that nothing is left of it; and tests/bench."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flaskchat.bench import loop, machine, model, project, ramp
from flaskchat.bench.load import Chunks, quantile
from flaskchat.bench.processes import CannotMeasure, Child, Server, place, stand_in
from flaskchat.config import SETTINGS, Settings
from tests.conftest import ROOT
from tests.server.client import deadline

PROJECT = """\
from flask import Flask
from flaskchat import FlaskChat

app = Flask(__name__)
chat = FlaskChat(app)
"""
LONGEST = 150
"""Seconds that a few replies may take on a machine that is busy with other tests."""


class Command:
    """`flask chat bench` in a process of its own; all that it starts carries a mark in its environment."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.folder = folder / "project"
        self.folder.mkdir()
        (self.folder / "project.py").write_text(PROJECT)
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("FLASKCHAT_", "OPENAI_"))}
        self.environment = {
            **plain, "TMPDIR": str(self.temporary), "BENCH_MARK": self.mark, "PYTHONPATH": str(ROOT),
            "PYTHONIOENCODING": "utf-8", "COLUMNS": "100",
        }  # fmt: skip

    def start(self, *options: str, app: str = "project") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", app, "chat", "bench", *options],
            cwd=self.folder if app == "project" else ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # as at a terminal: whoever is started in the background by a shell is made deaf to it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *options: str, app: str = "project") -> tuple[str, str]:
        """:returns: what it has printed, and its progress."""
        with self.start(*options, app=app) as process:
            try:
                out, err = process.communicate(timeout=LONGEST)
            except BaseException:
                process.terminate()
                raise
        assert process.returncode == 0, out + err
        return out, err

    def processes(self) -> list[psutil.Process]:
        """All that it has started and that is still there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("BENCH_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    for process in command.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_few_replies_are_measured_and_nothing_is_left_of_it(command: Command) -> None:
    out, err = command.run("--replies", "5", "--seconds", "0.5")
    assert command.processes() == []
    assert list(command.temporary.iterdir()) == []
    assert [path.name for path in command.folder.iterdir() if path.name != "__pycache__"] == ["project.py"]
    lines = out.splitlines()
    assert lines[0].split() == ["live", "tokens", "CPU", "of", "the", "CPU", "memory", "delay", "delay"]
    assert lines[2].split()[0] == "5"
    assert "Delay from the model to the client" in out
    assert "One worker holds" in out
    assert "Python 3." in lines[-1]
    assert "SQLite 3." in lines[-1]
    assert "5 live replies: counting for 0.5 s" in err


def test_the_standalone_application_s_report_is_json(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    command.environment |= {"FLASKCHAT_DATA": str(data), "FLASKCHAT_MODEL": "guide", "FLASKCHAT_IDENTITY_REQUIRED": "1"}
    command.environment |= {"FLASKCHAT_TRUSTED_PROXIES": "1", "FLASKCHAT_IDENTITY_HEADER": "X-Remote-User"}
    report = json.loads(command.run("--json", "--replies", "3", "--seconds", "1", "--rate", "50", app="wsgi")[0])
    assert list(data.iterdir()) == []
    assert command.processes() == []
    (step,) = report["steps"]
    assert (step["replies"], step["started"], step["errors"]) == (3, 3, {})
    assert step["tokens_per_second"] > 30  # of 150: however busy the machine is
    assert step["delay_ms_p50"] <= step["delay_ms_p99"]
    assert report["ended_by"] in ("replies", "delay")
    assert report["machine"]["cores"] >= 1
    if machine.measurable():
        assert step["cpu_us_per_token"] > 0
        assert report["idle_memory_kb"] > 10_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_whatever_ends_it_ends_all_that_it_has_started(command: Command, number: signal.Signals) -> None:
    with command.start("--replies", "5", "--seconds", "100") as process:
        for _ in deadline(LONGEST, "replies that are counted"):
            assert process.poll() is None
            assert process.stderr is not None
            if "counting for 100 s" in process.stderr.readline():
                break
        assert len(command.processes()) >= 5  # itself, the model, the client, gunicorn and its worker
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode != 0
        for _ in deadline(30, "the end of all its processes"):
            if not command.processes():
                break
    if number is not signal.SIGKILL:
        assert list(command.temporary.iterdir()) == []


# -- the figures -------------------------------------------------------------------------------------------------------


def body(stream: bool) -> str:
    return json.dumps({"model": "x", "messages": [], "stream": stream})


def test_the_client_counts_what_the_stand_in_has_sent() -> None:
    with place() as (folder, stack):
        standing, url = stack.enter_context(stand_in(folder))
        port = int(url.split(":")[2].partition("/")[0])
        load = stack.enter_context(contextlib.closing(Child("load", port, folder)))
        standing.ask("rate", 50)
        target = [20, "POST", "/v1/chat/completions", body(stream=True)]
        opened = load.ask("open", {"targets": [target], "seconds": 30})
        assert opened["opened"] == 20
        assert opened["errors"] == {}
        counted = load.ask("measure", 0.5)
        assert counted["live"] == 20
        assert 0 < counted["tokens"] <= counted["events"]
        assert standing.ask("finish") == {"finished": 20}
        rested = load.ask("rest", 30)
        stats = standing.ask("stats")
        assert rested["ended"] == stats["finished"] == 20
        assert rested["left"] == stats["live"] == stats["aborted"] == 0
        assert rested["tokens"] == stats["sent"] > 0


def test_every_token_of_the_stand_in_goes_through_the_chat_and_is_counted_once() -> None:
    with place() as (folder, stack):
        standing, url = stack.enter_context(stand_in(folder))
        project.make(folder, project.settings_for(Settings(max_streams_per_address=1), url))
        server = stack.enter_context(contextlib.closing(Server(folder)))
        load = stack.enter_context(contextlib.closing(Child("load", server.port, folder)))
        server.wait()
        standing.ask("rate", 200)  # so that an event holds several
        bench = ramp.Bench(standing, load, server.workers, lambda words: None)
        step = bench.step(10, 0.5)
        rested = bench.end()
        assert step.whole
        assert (rested["ended"], rested["left"], rested["done"]) == (10, 0, 10)
        assert rested["tokens"] == standing.ask("stats")["sent"] > rested["events"]


def test_a_silent_model_says_one_word_and_a_refusal_is_counted_as_what_it_is() -> None:
    with place() as (folder, stack):
        standing, url = stack.enter_context(stand_in(folder))
        port = int(url.split(":")[2].partition("/")[0])
        load = stack.enter_context(contextlib.closing(Child("load", port, folder)))
        standing.ask("rate", 0)
        target = [1, "POST", "/v1/chat/completions"]
        opened = load.ask("open", {"targets": [[*target, body(stream=True)], [2, "GET", "/"]], "seconds": 30})
        assert opened["opened"] == 1
        assert opened["errors"] == {"status 404": 2}
        assert load.ask("measure", 0.1)["tokens"] == 0
        assert standing.ask("stats")["sent"] == 1
        load.ask("close")
        for _ in deadline(60, "the stand-in to see that the client has left"):
            if standing.ask("stats")["aborted"] == 1:
                break


def test_a_child_that_died_is_told_with_what_it_has_said() -> None:
    with place() as (folder, stack):
        child = stack.enter_context(contextlib.closing(Child("load", 1, folder)))
        with pytest.raises(CannotMeasure, match="KeyError: 'nonsense'"):
            child.ask("nonsense", 1)


def test_bodies_in_chunks_are_taken_apart_wherever_they_are_cut() -> None:
    wire = b"5\r\nhello\r\n10;x=y\r\n0123456789\r\nabcd\r\n0\r\n\r\n"
    for cut in range(len(wire) + 1):
        chunks = Chunks()
        assert chunks.feed(wire[:cut]) + chunks.feed(wire[cut:]) == b"hello0123456789\r\nabcd"
        assert chunks.ended


def test_the_stand_in_s_chunks_are_of_the_length_that_they_say() -> None:
    for data in (model.TOKEN % time.time_ns(), model.LAST.removesuffix(b"0\r\n\r\n")):
        chunks = Chunks()
        (frame, *_) = chunks.feed(data).split(b"\n\n")
        assert json.loads(frame.removeprefix(b"data: "))["choices"]
        assert chunks.rest == b""


def test_quantiles_are_of_what_is_there() -> None:
    assert quantile([], 0.5) is None
    assert [quantile([1, 2, 3, 4, 5], part) for part in (0, 0.5, 0.99, 1)] == [1, 3, 4, 5]


def test_what_a_process_uses_is_read_or_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.cores() >= 1
    if machine.measurable():
        before = machine.cpu([os.getpid()])
        for _ in deadline(60, "computing that shows"):
            sum(range(1_000_000))
            now = machine.cpu([os.getpid()])
            if now is not None and before is not None and now > before:
                break
        assert (machine.memory([os.getpid()]) or 0) > 5 << 20
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.cpu([1]) is None
    assert machine.memory([1]) is None
    assert not machine.measurable()


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    assert loop.raise_files() >= 256


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_host_s_settings_count_but_not_its_data_its_keys_and_its_limits() -> None:
    host = Settings(
        heartbeat=7, system_prompt="Be brief.", database_url="postgresql://me:hunter2@db/x", redis_url="redis://hunter2",
        openai_api_key="hunter2", anthropic_api_key="hunter2", models="openai:dear", max_runs_per_owner=1,
        identity_required=True, url_prefix="/talk",
    )  # fmt: skip
    settings = project.settings_for(host, "http://127.0.0.1:9/v1")
    assert "hunter2" not in repr(settings)
    assert settings["FLASKCHAT_HEARTBEAT"] == 7
    assert settings["FLASKCHAT_SYSTEM_PROMPT"] == "Be brief."
    assert settings["FLASKCHAT_OPENAI_BASE_URL"] == "http://127.0.0.1:9/v1"
    assert "FLASKCHAT_DATABASE_URL" not in settings
    assert project.left_alone(host).endswith("FLASKCHAT_DATABASE_URL and FLASKCHAT_REDIS_URL left alone.")
    assert project.left_alone(Settings(database_url="sqlite:////var/x")) == ""
    fields = {setting.field for setting in SETTINGS}
    assert fields.issuperset((*project.NO_LIMIT, *project.NONE_OF_THEIRS))
    limits = {name for name in fields if "per_" in name}
    assert limits == set(project.NO_LIMIT), "a limit per somebody or per time is switched off for a measurement"


# -- the comparison with peers -----------------------------------------------------------------------------------------


def test_the_comparison_runs(tmp_path: Path, long: bool) -> None:
    """With two replies and without most peers. `--long`: every measurement with whatever is here, twice."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)  # the database server is another user's
    some = [] if long else ["replies", "finished", "--only", "flaskchat", "--only", "node"]
    rounds = 2 if long else 1
    text = tmp_path / "results.md"
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench" / "run", *some, "--rounds", str(rounds), "--seconds", "0.5",
         "--scale", "0.01", "--output", text],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=1500 if long else LONGEST,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert text.read_text(encoding="utf-8") == done.stdout
    assert "### 2 live replies at 20 tokens/s" in done.stdout
    assert "### Reading a finished reply of 50 events" in done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| Node fetch | ")]
    assert rows, done.stderr
    if not long:
        assert "÷ flaskchat" in done.stdout
        assert float(rows[0][2]) > 0
