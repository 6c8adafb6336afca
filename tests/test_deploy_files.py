"""What is in deploy/ for other programs to read: gunicorn's configuration, nginx's, and systemd's times beside them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.programs import free_port, program

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


def conf(monkeypatch: pytest.MonkeyPatch, **environ: str) -> dict[str, Any]:
    """gunicorn's settings from deploy/gunicorn.conf.py, read in a process of its own, because it patches."""
    code = (
        "import json, runpy, sys; found = runpy.run_path(sys.argv[1]);"
        "print(json.dumps({k: v for k, v in found.items() if isinstance(v, (str, int, float, type(None)))}))"
    )
    for name in ("HOST", "PORT", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", code, str(DEPLOY / "gunicorn.conf.py")],
        env={**os.environ, **environ}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_the_usual_variables_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conf(monkeypatch)["bind"] == "127.0.0.1:8000"
    assert conf(monkeypatch)["workers"] == 2
    found = conf(monkeypatch, HOST="::1", PORT="9000", WEB_CONCURRENCY="5")
    assert (found["bind"], found["workers"]) == ("[::1]:9000", 5)
    assert conf(monkeypatch, HOST="unix:/tmp/x.sock")["bind"] == "unix:/tmp/x.sock"


def test_every_name_in_the_configuration_is_one_of_gunicorns() -> None:
    from gunicorn.config import KNOWN_SETTINGS

    known = {setting.name for setting in KNOWN_SETTINGS}
    text = (DEPLOY / "gunicorn.conf.py").read_text(encoding="utf-8")
    names = re.findall(r"^([a-z]\w*)(?:, \w+)? = |^def (\w+)", text, re.M)
    assert {first or second for first, second in names} <= known


def test_the_patch_comes_first() -> None:
    code = re.sub(r'^""".*?"""', "", (DEPLOY / "gunicorn.conf.py").read_text(encoding="utf-8"), flags=re.S)
    lines = [line for line in code.split("\n") if line and not line.startswith("#")]
    assert lines[:2] == ["from gevent import monkey", "monkey.patch_all()"]


def test_the_times_fit_into_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from flaskchat.config import Settings

    found = conf(monkeypatch)
    unit = (DEPLOY / "flaskchat.service").read_text(encoding="utf-8")
    nginx = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    docker = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    guide = (DEPLOY / "README.md").read_text(encoding="utf-8")
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)", unit, re.M)[0])
    assert Settings().drain < found["graceful_timeout"] < stop
    assert re.findall(r"\(FLASKCHAT_DRAIN\)|\d+ s", re.findall(r"^# (replies.*)", unit, re.M)[0]) == [
        f"{Settings().drain:g} s", "(FLASKCHAT_DRAIN)", f"{found['graceful_timeout']} s", f"{stop} s",
    ]  # fmt: skip
    for patience in re.findall(r"(?:docker stop -t|--stop-timeout) (\d+)", docker + guide):
        assert found["graceful_timeout"] < int(patience)
    # a worker that leaves has nothing left to wait for when its replies have had their time, or soon after
    assert int(re.findall(r"keepalive_timeout (\d+)s;", nginx)[0]) < found["keepalive"] <= Settings().drain + 2
    assert int(re.findall(r"proxy_read_timeout (\d+)s;", nginx)[0]) >= 2 * Settings().heartbeat
    assert found["max_requests"] == 0


def test_a_command_under_systemd_has_the_settings_of_the_service() -> None:
    unit = (DEPLOY / "flaskchat.service").read_text(encoding="utf-8")
    guide = (DEPLOY / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^systemd-run .*", guide, re.M)
    settings = re.findall(r"^Environment=(FLASKCHAT_\S+)$", unit, re.M)
    assert len(settings) > 1
    assert re.findall(r" -E (\S+)", command) == settings
    assert f"-p EnvironmentFile={re.findall('^EnvironmentFile=(.*)', unit, re.M)[0]} " in command


def test_each_line_of_gunicorn_s_configuration_stands_in_a_paragraph_that_says_why() -> None:
    code = (DEPLOY / "gunicorn.conf.py").read_text(encoding="utf-8").partition("monkey.patch_all()")[2]
    paragraphs = [found for found in re.split(r"\n\n+", code) if re.search(r"^\w+(, \w+)* = ", found, re.M)]
    assert len(paragraphs) > 12
    assert [found for found in paragraphs if not found.strip().startswith("# ")] == []


def test_the_container_is_started_alike_wherever_it_is_told() -> None:
    def command(text: str) -> list[str]:
        (found,) = re.findall(r"docker run -d .*", text)
        return str(found).split()

    docker = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n#", "")
    assert command(docker) == command((DEPLOY / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("where", ["0.0.0.0", "", "::", "unix:", "unix://"])
def test_the_container_s_health_is_asked_where_it_listens(where: str, tmp_path: Path) -> None:
    unix = where.startswith("unix:")
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET6 if where == "::" else socket.AF_INET)
    listener.bind(path if unix else ("::1" if where == "::" else "127.0.0.1", 0))
    port = "" if unix else str(listener.getsockname()[1])
    environ = {"HOST": f"{where}{path}" if unix else where, "PORT": port, "FLASKCHAT_URL_PREFIX": "/chat/"}

    def health() -> int:
        command = [sys.executable, str(DEPLOY / "health.py")]
        return subprocess.run(command, env=environ, timeout=30, check=False, capture_output=True).returncode

    asked: list[bytes] = []

    def serve() -> None:
        for status in (b"200 OK", b"503 Not now"):
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536).partition(b" HTTP/")[0])
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    assert health() == 1, "nobody listens"
    with listener:
        listener.listen()
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        assert [health(), health()] == [0, 1]
        server.join(10)
    assert asked == [b"GET /chat/healthz"] * 2


def with_tls(site: str, folder: Path, version: tuple[int, ...]) -> str:
    """deploy/nginx.conf as somebody makes it who has a certificate: port 80 gives way, and `#` is taken away."""
    make = "req -x509 -newkey rsa:2048 -nodes -subj /CN=chat.example -keyout chat.key -out chat.pem"
    subprocess.run([program("openssl"), *make.split()], cwd=folder, check=True, capture_output=True, timeout=60)
    site = site.replace("server {\n    listen 80;\n", "server {\n")
    for old in ("/etc/ssl/certs", "/etc/ssl/private"):
        site = site.replace(old, str(folder))
    if version < (1, 25, 1):
        site = site.replace("    # http2 on;", "    #").replace("# listen 443 ssl;", "# listen 443 ssl http2;")
    site = re.sub(r"^# (server {|    listen|    server_name|    return|})", r"\1", site, flags=re.M)
    site = re.sub(r"^    # (listen|http2 on|ssl_)", r"    \1", site, flags=re.M)
    assert site.count("\nserver {") == 2
    return site.replace("listen 443", f"listen 127.0.0.1:{free_port()}")


@pytest.mark.parametrize("tls", [False, True])
def test_nginx_understands_its_file(tmp_path: Path, *, tls: bool) -> None:
    nginx = program("nginx")
    site = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    if tls:
        said = subprocess.run([nginx, "-v"], capture_output=True, text=True, timeout=30, check=True).stderr
        site = with_tls(site, tmp_path, tuple(map(int, re.findall(r"\d+", said)[:3])))
    (tmp_path / "site.conf").write_text(site.replace("listen 80;", f"listen 127.0.0.1:{free_port()};"))
    main = "pid P/pid;\nerror_log stderr;\nevents {}\nhttp { access_log off; include P/site.conf; }\n"
    (tmp_path / "nginx.conf").write_text(main.replace("P/", f"{tmp_path}/"))
    done = subprocess.run(
        [nginx, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
