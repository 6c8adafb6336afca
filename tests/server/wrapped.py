"""The test application behind a middleware that wraps `start_response`, as many do: `tests.server.wrapped:app`."""

from collections.abc import Callable, Iterable
from typing import Any

from tests.server.app import app

inner = app.wsgi_app


def middleware(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Puts a header of its own on every answer, and an X in front of every piece of a stream's body."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, ("X-Wrapped", "yes")], exc_info)

    body = inner(environ, start)
    return Marked(body) if environ["PATH_INFO"].endswith("/events") else body


class Marked:
    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._pieces = iter(body)

    def __iter__(self) -> "Marked":
        return self

    def __next__(self) -> bytes:
        return b":X\n" + next(self._pieces)

    def close(self) -> None:
        self._body.close()  # type: ignore[attr-defined]


app.wsgi_app = middleware  # type: ignore[method-assign]
