"""PostgreSQL and Redis over TLS, with a certificate of a CA of our own: replies go over both, and whoever would speak
to somebody else is told so in words.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.errors import ConfigurationError
from flaskchat.log.base import LogUnavailable
from flaskchat.log.link import Link, where
from flaskchat.store import migrate
from flaskchat.store.kinds import open_database
from tests.backends import Backend, PostgresServer, RedisServer, opened
from tests.conftest import Server
from tests.programs import free_port, program
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import deadline
from tests.server.history import History
from tests.server.test_kill import KEPT, ask_at, newcomer, settings

pytestmark = pytest.mark.backends("postgres+redis")

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


class Authority:
    """Signs for `localhost`, by that name and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._openssl("req", "-x509", *KEY, "-subj", "/CN=a CA", "-keyout", "ca.key", "-out", "ca.pem")

    def sign(self, folder: Path) -> None:
        """Make a certificate and its key there."""
        self._openssl("req", *KEY[:-2], "-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem", "-out", "asked.pem")
        (self.folder / "names").write_text("subjectAltName=DNS:localhost\n")
        self._openssl(
            "x509", "-req", "-in", "asked.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", f"{folder}/cert.pem",
        )  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run([program("openssl"), *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30)


class SafePostgres(PostgresServer):
    host = "localhost"

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self.ca = authority.ca
        authority.sign(self.folder)
        own = self.folder.stat()
        for name in ("key.pem", "cert.pem"):
            path = self.folder / name
            path.chmod(0o600)
            subprocess.run(["chown", f"{own.st_uid}:{own.st_gid}", path], check=True)
        rights = self._data / "pg_hba.conf"
        rights.write_text("hostssl all all all trust\n")  # nobody without TLS

    def _command(self) -> list[str]:
        cert = [f"--ssl_cert_file={self.folder}/cert.pem", f"--ssl_key_file={self.folder}/key.pem"]
        return [*super()._command(), "--ssl=on", *cert]

    def url(self, database: str = "postgres") -> str:
        return f"{super().url(database)}?sslmode=verify-full&sslrootcert={self.ca}"


class SafeRedis(RedisServer):
    """Has a port for the tests' own questions as well, without TLS."""

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self.ca = authority.ca
        self.tls_port = free_port()
        authority.sign(self.folder)

    def _command(self) -> list[str]:
        return [
            *super()._command(), "--tls-port", str(self.tls_port), "--tls-cert-file", "cert.pem", "--tls-key-file",
            "key.pem", "--tls-ca-cert-file", str(self.ca), "--tls-auth-clients", "no",
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.tls_port}/0?ssl_ca_certs={self.ca}"


class SafeServers:
    def __init__(self, folder: Path) -> None:
        for name in ("ours", "another"):
            (folder / name).mkdir()
        ours = Authority(folder / "ours")
        self.another = Authority(folder / "another")
        self.postgres, self.redis = SafePostgres(ours), SafeRedis(ours)

    def close(self) -> None:
        self.postgres.close()
        self.redis.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[SafeServers]:
    with tempfile.TemporaryDirectory(prefix="flaskchat-tls-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL is another user where we are root
        servers = SafeServers(Path(folder))
        yield servers
        servers.close()


@pytest.fixture
def backend(request: pytest.FixtureRequest, servers: SafeServers) -> Iterator[Backend]:
    with opened(request.param, servers) as found:  # type: ignore[arg-type]
        yield found


def test_replies_are_stored_and_followed_over_tls(
    serve: Callable[..., Server], model: Running, backend: Backend
) -> None:
    server = serve(settings(model), app=FAULTY, args=KEPT)
    history = History()
    asker = newcomer(history, server, "somebody")
    first, second = server.workers()
    reading = ask_at(asker, first, tokens=60, rate=50)
    reading.take(2)
    tab = asker.tab()
    followed = tab.follow(reading.run_id, connection=tab.client.connect_to(second))
    assert followed.rest()[-1].event == "done"
    assert reading.rest()[-1].event == "done"
    judge(history, server, model)
    assert "cannot be used" not in server.log()


def test_a_connection_over_tls_is_kept_for_the_next_call(backend: Backend) -> None:
    """What the protocol itself sends after the handshake must not look like a server that has gone."""
    assert backend.postgres is not None
    database = open_database(backend.postgres.url(backend.database), timeout=5.0)
    try:
        pids = {database.read(lambda c: c.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()) for _ in range(5)}
        ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert database.read(lambda c: c.execute(sa.text(ssl)).scalar_one())
    finally:
        database.close()
    assert len(pids) == 1


def refused_by_postgres(url: str) -> str:
    database = open_database(url, timeout=10.0)
    try:
        with pytest.raises(ConfigurationError) as refused:
            migrate.upgrade(database)
    finally:
        database.close()
    return str(refused.value)


def refused_by_redis(url: str) -> str:
    link = Link(where(url))
    try:
        with pytest.raises(LogUnavailable) as refused:
            link.ask([b"PING"])
    finally:
        link.close()
    return str(refused.value)


def test_a_postgres_that_cannot_prove_who_it_is_is_refused_at_the_start_in_words(
    backend: Backend, servers: SafeServers
) -> None:
    url = servers.postgres.url(backend.database)
    said = refused_by_postgres(url.replace(str(servers.postgres.ca), str(servers.another.ca)))
    assert "certificate verify failed" in said
    said = refused_by_postgres(url.replace("localhost", "127.0.0.1"))
    assert 'does not match host name "127.0.0.1"' in said
    said = refused_by_postgres(url.replace(str(servers.postgres.ca), "/nowhere/ca.pem"))
    assert "/nowhere/ca.pem" in said
    said = refused_by_postgres(url.partition("?")[0] + "?sslmode=disable")
    assert "no encryption" in said


def test_a_redis_that_cannot_prove_who_it_is_is_refused_in_words(servers: SafeServers) -> None:
    url = servers.redis.url
    servers.redis.start()
    for bad, words in (
        (url.replace(str(servers.redis.ca), str(servers.another.ca)), "certificate verify failed"),
        (url.replace("localhost", "127.0.0.1"), "certificate is not valid for '127.0.0.1'"),
        (url.partition("?")[0], "certificate verify failed"),
    ):
        said = refused_by_redis(bad)
        assert words in said


def test_what_cannot_be_meant_is_refused_before_anything_is_connected(servers: SafeServers) -> None:
    url = servers.redis.url
    for bad, words in (
        (url.replace(str(servers.redis.ca), "/nowhere/ca.pem"), "ssl_ca_certs: there is no '/nowhere/ca.pem'"),
        (url.replace("rediss:", "redis:"), "ssl_ca_certs needs rediss://"),
        (f"{url}&ssl_cacerts=x", "ssl_cacerts"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            where(bad)


def test_a_server_whose_redis_has_another_authority_says_so_and_is_not_ready(
    serve: Callable[..., Server], model: Running, backend: Backend, servers: SafeServers
) -> None:
    assert backend.redis is not None
    other = backend.redis.url.replace(str(servers.redis.ca), str(servers.another.ca))
    server = serve({**settings(model), "FLASKCHAT_REDIS_URL": other}, app=FAULTY, workers=1)
    answer = server.client().get("/readyz")
    assert answer.status == 503
    assert "certificate verify failed" in answer.json()["wrong"]["log"]
    for _ in deadline(60, "the log to say so"):
        if "certificate verify failed" in server.log():
            break
