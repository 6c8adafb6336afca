"""What is in deploy/: the pinned packages, the launcher, and the table of settings."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import uuid
from pathlib import Path
from types import ModuleType

import pytest

from flaskchat import sse
from tests.programs import free_port

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
SCRIPTS = [DEPLOY / "run", DEPLOY / "install", ROOT / "tests" / "run", ROOT / ".ci" / "run"]


def load(path: Path, name: str) -> ModuleType:
    """A script of deploy/, as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def requirements() -> ModuleType:
    return load(DEPLOY / "requirements.py", "deploy_requirements")


def lines_of(*options: str) -> str:
    command = [sys.executable, str(DEPLOY / "requirements.py"), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


# the pinned packages


def test_everything_that_is_needed_is_pinned_with_hashes() -> None:
    text = lines_of("--dev")
    pins = re.findall(r"^([a-z0-9-]+)==", text, re.M)
    assert len(pins) > 40
    for block in re.findall(r"^[a-z0-9].*(?:\n[ ].*)*", text, re.M):
        assert block.count("--hash=sha256:") >= 1, block.split("\n")[0]


def test_pins_satisfy_what_pyproject_asks_for(requirements: ModuleType) -> None:
    from packaging.requirements import Requirement

    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lines_of("--dev"), re.M))
    for line in requirements.open_requirements(document, build=True, extras=[], dev=True):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirements.canonical(line)]), line


def test_a_deployment_gets_what_it_runs_with_and_no_more() -> None:
    run, build = lines_of(), lines_of("--build")
    assert all(f"\n{name}==" in "\n" + run for name in ["flask", "werkzeug", "gevent", "greenlet", "gunicorn"])
    assert all(f"\n{name}==" not in build for name in ["pytest", "mypy", "redis", "playwright"])
    assert "\nhatchling==" in build
    assert "\nhatchling==" not in run
    assert "\nredis==" in lines_of("--extra", "redis")


def test_a_package_that_is_not_pinned_is_named(requirements: ModuleType) -> None:
    with pytest.raises(SystemExit, match="does not pin nothing-like-it"):
        requirements.locked({"async-timeout": ("", set())}, {"nothing-like-it"})


def test_the_pins_name_no_host_and_no_path_of_one() -> None:
    text = (DEPLOY / "constraints.txt").read_text(encoding="utf-8")
    assert [line for line in text.partition("\n\n")[2].splitlines() if "/" in line] == []
    assert not re.search(r"https?:|file:/|--(extra-)?index|--find-links|--trusted", text)


# the scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_can_be_run_and_is_plain_sh(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", str(script)], check=True, timeout=10)


def copy_of_install(tmp_path: Path) -> Path:
    """A checkout with nothing but what deploy/install reads before it needs Python."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "install", tmp_path / "deploy" / "install")
    return tmp_path / "deploy" / "install"


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    install = copy_of_install(tmp_path)
    old = tmp_path / "old"
    fake(old, "python3", '[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }; exit 1')
    for name in ("dirname", "tail", "head", "cat", "ls"):
        (old / name).symlink_to(shutil.which(name) or "/bin/" + name)
    done = subprocess.run(
        [str(install)], env={"PATH": str(old)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "Python 3.9.2" in done.stderr


def test_a_python_without_venv_is_told_how_to_get_it(tmp_path: Path) -> None:
    install = copy_of_install(tmp_path)
    fake(tmp_path / "bare", "python3", f'case "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"')
    done = subprocess.run(
        [str(install)],
        env={"PATH": f"{tmp_path / 'bare'}:/usr/bin:/bin", "PYTHON": "python3"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


# the launcher


def start(tmp_path: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/start.py with gunicorn only checking its configuration.

    :param options: further ones of gunicorn's.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, str(DEPLOY / "start.py"), "--check-config", *options],
        env={**kept, "FLASKCHAT_DATA": str(tmp_path / "data"), **environ},
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip


def test_it_says_where_and_with_which_model_and_why(tmp_path: Path) -> None:
    port = str(free_port())
    done = start(tmp_path, PORT=port, OPENAI_API_KEY="k", FLASKCHAT_MODEL="openai:gpt-5-mini")
    assert done.returncode == 0, done.stderr
    assert f"http://127.0.0.1:{port}" in done.stdout
    assert re.search(r"answers with openai:gpt-5-mini, because \S+", done.stdout)


def test_a_port_that_is_taken_is_told_with_another(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = start(tmp_path, PORT=str(port), FLASKCHAT_MODEL="guide")
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert "PORT=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PORT": "eighty"}, "PORT='eighty'"),
        ({"PORT": "70000"}, "PORT='70000'"),
        ({"HOST": "not an address"}, "HOST='not an address'"),
        ({"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY='two'"),
        ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY='0'"),
        ({"FLASKCHAT_HEARTBEAT": "often"}, "FLASKCHAT_HEARTBEAT='often'"),
        ({"FLASKCHAT_DATABASE_URL": "mysql://host/chat"}, "FLASKCHAT_DATABASE_URL='mysql://host/chat'"),
        ({"FLASKCHAT_REDIS_URL": "redis://host:none"}, "FLASKCHAT_REDIS_URL"),
    ],
)
def test_a_wrong_setting_is_told_before_gunicorn_starts(tmp_path: Path, environ: dict[str, str], words: str) -> None:
    done = start(tmp_path, **{"PORT": str(free_port()), "FLASKCHAT_MODEL": "guide", **environ})
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (["-b", "0.0.0.0:9000"], {}),
        (["-b0.0.0.0:9000"], {}),
        (["-w", "4", "--bind=0.0.0.0:9000", "--access-logfile", "-"], {}),
        ([], {"GUNICORN_CMD_ARGS": "--access-logfile - --bind '0.0.0.0:9000'"}),
    ],
)
def test_another_way_to_say_where_is_refused_before_it_is_said_wrongly(
    tmp_path: Path, options: list[str], environ: dict[str, str]
) -> None:
    done = start(tmp_path, *options, PORT=str(free_port()), FLASKCHAT_MODEL="guide", **environ)
    assert done.returncode == 1
    assert "--bind 0.0.0.0:9000: expected HOST and PORT" in done.stderr
    assert "listens" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_number_of_workers_that_is_set_to_nothing_is_none(tmp_path: Path) -> None:
    """As a compose file may; gunicorn by itself ends in a traceback."""
    done = start(tmp_path, PORT=str(free_port()), FLASKCHAT_MODEL="guide", WEB_CONCURRENCY="")
    assert done.returncode == 0, done.stderr


def test_the_model_is_chosen_once_for_all_workers(tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text("import os\nprint('workers find', os.environ['FLASKCHAT_MODEL'])\n")
    done = start(tmp_path, "-c", str(conf), PORT=str(free_port()))
    chosen = re.search(r"answers with (\S+),", done.stdout)
    assert chosen, done.stderr
    assert f"workers find {chosen[1]}\n" in done.stdout


def test_a_model_s_name_that_nobody_chose_and_a_key_that_is_missing_are_told(tmp_path: Path) -> None:
    done = start(tmp_path, PORT=str(free_port()), OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert done.returncode == 0, done.stderr
    assert "gpt-5-mini" in done.stderr
    assert "FLASKCHAT_MODEL=openai:" in done.stderr
    done = start(tmp_path, PORT=str(free_port()), FLASKCHAT_MODEL="anthropic:x")
    assert "FLASKCHAT_ANTHROPIC_API_KEY" in done.stderr


def test_other_options_of_gunicorn_s_are_handed_on(tmp_path: Path) -> None:
    options = ["--backlog", "64", "-k", "gevent", "--access-logfile", "-"]
    done = start(tmp_path, *options, PORT=str(free_port()), FLASKCHAT_MODEL="guide")
    assert done.returncode == 0, done.stderr
    done = start(tmp_path, "--nonsense", PORT=str(free_port()), FLASKCHAT_MODEL="guide")
    assert "unrecognized arguments: --nonsense" in done.stderr
    assert (done.returncode, done.stdout) == (1, ""), "it said where it listens, and then did not"
    assert "usage:" not in done.stderr


def test_help_is_about_the_script_and_needs_nothing_installed(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "run", tmp_path / "deploy" / "run")
    run = subprocess.run([tmp_path / "deploy" / "run", "-w", "4", "--help"], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stderr) == (0, "")
    assert all(word in run.stdout for word in ("./deploy/run", "HOST", "PORT", "WEB_CONCURRENCY", "FLASKCHAT_MODEL"))
    assert len(run.stdout.splitlines()) < 20
    assert start(tmp_path, "--help").stdout == run.stdout


@pytest.mark.parametrize(
    ("driver", "url"),
    [
        ("psycopg", "FLASKCHAT_DATABASE_URL=postgresql://localhost/chat"),
        ("redis", "FLASKCHAT_REDIS_URL=redis://localhost"),
    ],
)
def test_a_driver_that_is_missing_is_told_with_how_to_get_it(tmp_path: Path, driver: str, url: str) -> None:
    (tmp_path / f"{driver}.py").write_text("raise ImportError('there is none')\n")
    name, _, value = url.partition("=")
    done = start(tmp_path, PORT=str(free_port()), FLASKCHAT_MODEL="guide", PYTHONPATH=str(tmp_path), **{name: value})
    assert done.returncode == 1
    assert name in done.stderr
    assert "pip install 'flaskchat[" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_it_answers_from_the_documentation_and_ends_without_a_traceback(tmp_path: Path, how: str) -> None:
    port = str(free_port())
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(DEPLOY / "start.py")],
            env={**kept, "FLASKCHAT_DATA": str(tmp_path / "data"), "FLASKCHAT_MODEL": "guide", "PORT": port},
            stdout=output, stderr=output, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
    try:
        text = first_answer(port, server, log)
        if how == "SIGTERM":
            server.terminate()
        else:
            os.killpg(server.pid, signal.SIGINT)  # as a terminal sends it to all that runs in it
        assert server.wait(90) == 0, log.read_text()
    finally:
        server.kill()
        server.wait(20)
    assert text.startswith("Hello! I am flaskchat's built-in guide.")
    assert "OPENAI_API_KEY" in text
    assert log.read_text().count("Booting worker") == 2
    assert "Traceback" not in log.read_text()


def test_a_file_that_is_no_database_is_told_without_the_workers_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flaskchat.sqlite3").write_bytes(b"no database" * 1000)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "start.py")],
        env={**kept, "FLASKCHAT_DATA": str(tmp_path / "data"), "FLASKCHAT_MODEL": "guide", "PORT": str(free_port())},
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "flaskchat: FLASKCHAT_DATABASE_URL: cannot use the database" in done.stderr
    assert "ConfigurationError" not in done.stderr, "a worker's traceback around it"


def first_answer(port: str, server: subprocess.Popen[bytes], log: Path) -> str:
    """Say hi once the server is up, and read the reply to its end."""
    body = json.dumps({"message": {"id": str(uuid.uuid4()), "text": "hi"}}).encode()
    until = time.monotonic() + 90
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        try:
            connection.request("POST", "/conversation", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            frames = sse.Decoder().feed(response.read())
            assert frames[-1].event == "done"
            return "".join(json.loads(frame.data)["text"] for frame in frames if frame.event == "delta")
        except ConnectionError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.03)
        finally:
            connection.close()


def test_a_restart_under_systemd_s_socket_refuses_no_connection_and_is_over_in_seconds(tmp_path: Path) -> None:
    """The socket is made here, as systemd does; who connects while nobody serves it waits, and is answered."""
    data, log = tmp_path / "data", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held:
        port = str(held.getsockname()[1])
        server = activated(held, data, log)
        try:
            assert first_answer(port, server, log)
            idle = [http.client.HTTPConnection("127.0.0.1", int(port), timeout=60) for _ in range(3)]
            for connection in idle:  # as a browser or nginx has them
                connection.request("GET", "/healthz")
                assert connection.getresponse().read()
            told_at = time.monotonic()
            server.terminate()
            assert server.wait(90) == 0, log.read_text()
            took = time.monotonic() - told_at
            print(f"gunicorn had gone after {took:.1f} s")
            assert took < 25, "it waited for idle connections"
            waiting = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            waiting.request("GET", "/healthz")
            server = activated(held, data, log)
            assert waiting.getresponse().status == 200
            for connection in [*idle, waiting]:
                connection.close()
            server.terminate()
            assert server.wait(90) == 0, log.read_text()
        finally:
            server.kill()
            server.wait(20)
    assert "Traceback" not in log.read_text()
    assert "the socket that systemd handed over" in log.read_text()


def activated(held: socket.socket, data: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start it with a listening socket, as systemd hands one over: descriptor 3, and two variables that say so."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    become = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.executable, sys.argv[2:])"
    )
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", become, str(held.fileno()), sys.executable, str(DEPLOY / "start.py")],
            env={**kept, "FLASKCHAT_DATA": str(data), "FLASKCHAT_MODEL": "guide"},
            stdout=output, stderr=output, pass_fds=[held.fileno()],
        )  # fmt: skip
