"""Reverse proxies in front of a server: nginx, haproxy and caddy as they come, and one of ours that cuts streams."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import ROOT
from tests.programs import free_port, program
from tests.server.client import Client, deadline

NAMES = ("nginx", "haproxy", "caddy")
NGINX = """
pid {folder}/nginx.pid; error_log {folder}/nginx.log; daemon off; worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {site}
}}
"""
NGINX_SITE = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{to}; {more} }} }}"
# haproxy has no timeouts of its own and asks for some; these are what Debian's and the documentation's example have.
# Without http-no-delay it has the kernel hold a chunk back for 200 ms: tokens come in lumps. deploy/README.md says so.
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client {patience}s
    timeout server {patience}s
    option http-no-delay
frontend public
    bind 127.0.0.1:{port}
    default_backend chat
backend chat
    server chat 127.0.0.1:{to}
"""
CADDY = """
{{
    admin off
    auto_https off
    storage file_system {folder}/caddy
}}
http://127.0.0.1:{port} {{
    reverse_proxy 127.0.0.1:{to} {{
        transport http {{
            {more}
        }}
    }}
}}
"""


@contextlib.contextmanager
def running(name: str, folder: Path, to: int, *, patience: float | None = None) -> Iterator[int]:
    """One of `NAMES` in front of a server at the port `to`, with its default settings.

    :param patience: seconds of silence after which it gives a stream up, in place of its default.
    :returns: its port.
    """
    binary, port = program(name), free_port()
    if name == "nginx":
        more = f"proxy_read_timeout {patience:g}s;" if patience else ""
        command = nginx_command(binary, folder, NGINX_SITE.format(port=port, to=to, more=more))
    elif name == "haproxy":
        (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, to=to, patience=f"{patience or 50:g}"))
        command = [binary, "-db", "-f", str(folder / "haproxy.cfg")]
    else:
        more = f"read_timeout {patience:g}s" if patience else ""
        (folder / "Caddyfile").write_text(CADDY.format(folder=folder, port=port, to=to, more=more))
        command = [binary, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with started(command, folder / f"{name}.out", port):
        yield port


def nginx_command(binary: str, folder: Path, site: str) -> list[str]:
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, site=site))
    return [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")]


@contextlib.contextmanager
def deployed_nginx(folder: Path, *to: int) -> Iterator[int]:
    """nginx with deploy/nginx.conf, but for the addresses; in front of several servers it asks them in turn."""
    binary, port = program("nginx"), free_port()
    site = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    servers = "\n".join(f"    server 127.0.0.1:{number};" for number in to)
    listen = f"\n    listen 127.0.0.1:{port};"
    for ours, here in (("\n    listen 80;", listen), ("    server 127.0.0.1:8000;", servers)):
        assert site.count(ours) == 1
        site = site.replace(ours, here)
    with started(nginx_command(binary, folder, site), folder / "nginx.out", port):
        yield port


@contextlib.contextmanager
def started(command: list[str], log: Path, port: int) -> Iterator[None]:
    environment = {**os.environ, "HOME": str(log.parent), "XDG_DATA_HOME": str(log.parent)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        for _ in deadline(60, f"{command[0]} to listen"):
            assert process.poll() is None, log.read_text(errors="replace")
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"--- {command[0]}\n{log.read_text(errors='replace')}")


class Front:
    """A proxy as the tests use a server: something that gives clients."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._clients: list[Client] = []

    def client(self, timeout: float = 30.0) -> Client:
        self._clients.append(Client(self.port, timeout=timeout))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Cutter:
    """A proxy that ends every response after so many seconds, cleanly: the body looks whole."""

    def __init__(self, to: int, seconds: float) -> None:
        cutter = self
        self.cuts = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                cutter.relay(self, to, seconds)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def relay(self, request: BaseHTTPRequestHandler, to: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection("127.0.0.1", to, timeout=30)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            upstream.request(request.command, request.path, body or None, headers)
            sock = upstream.sock
            response = upstream.getresponse()
            request.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    request.send_header(name, value)
            if response.status == 204:
                request.end_headers()
                return
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            while (left := until - time.monotonic()) > 0:
                sock.settimeout(left)
                data = response.read1(65536)
                if not data:
                    break
                request.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                self.cuts += 1
        except TimeoutError:
            self.cuts += 1
        finally:
            upstream.close()
        with contextlib.suppress(OSError):
            request.wfile.write(b"0\r\n\r\n")
