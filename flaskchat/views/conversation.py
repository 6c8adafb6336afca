"""`POST /conversation`, following a run, and Stop: the streaming endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request

from .. import chat, server, sse
from ..errors import Unavailable
from ..reader import Reader
from ..security import STREAM_HEADERS
from ..state import current_state
from . import base

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

READER = "flaskchat.reader"
"""Key of the WSGI environment."""


class Stream(Response):
    """Offers its connection to the reader that it was made of, if nothing on the way to the server wraps either."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            frames = super().__call__(environ, start_response)
        except BaseException:  # a header of the host's that the server refuses, say: then nobody else closes it
            self.close()
            raise
        if isinstance(frames, Reader) and frames.live:
            frames.offer = server.offer(environ, start_response)
        return frames


def stream(run_id: str, frames: Reader) -> Response:
    """A response that hands the iterator to the server as it is.

    No `stream_with_context`: a reader needs no context, and one kept for the length of a stream would keep the
    host's database session, and whatever else it lets go of at a request's end, for as long.
    """
    response = Stream(frames, direct_passthrough=True)
    response.headers.extend(STREAM_HEADERS)
    response.headers["Content-Type"] = STREAM_HEADERS["Content-Type"]
    response.headers["Flaskchat-Run-Id"] = run_id
    request.environ[READER] = frames
    return response


def let_go(error: BaseException | None) -> None:
    """Close the stream of a request that failed after its view, in a hook of the host's, say (`response.get_data()` on
    a stream raises): Flask answers 500 in its place and does not close it, and its places would be taken for good.
    """
    frames: Reader | None = request.environ.pop(READER, None)
    if error is not None and frames is not None:
        frames.close()


def converse() -> Response:
    owner = base.owner()
    state = current_state()
    command = chat.parse(base.body(), state.settings)
    return stream(*chat.converse(state.runtime, base.visitor(owner), command))


def come_back() -> Response:
    """A stream without an event: no place, or a database that cannot be read, is nothing that lasts, and an EventSource
    would take a 503 for the end, for good. It is the same for every run, also for somebody else's and for none.
    """
    response = Response(sse.HEARTBEAT)
    response.headers.extend(STREAM_HEADERS)
    response.headers["Content-Type"] = STREAM_HEADERS["Content-Type"]
    return response


def follow(run_id: str) -> Response:
    owner = base.owner()
    last_event_id = request.headers.get("Last-Event-ID") or request.args.get("last_event_id")
    try:
        frames = current_state().runtime.readers.follow(run_id, base.visitor(owner), last_event_id)
    except Unavailable as error:
        base.count_refusal(error)
        return come_back()
    if frames is None:
        return Response(status=204, headers={"Cache-Control": "no-store"})
    return stream(run_id, frames)


def stop(run_id: str) -> Response:
    owner = base.owner()
    run = current_state().runtime.runs.stop(run_id, owner)
    return base.json({"run_id": run.run_id, "state": run.state, "upstream_closed_ms": run.upstream_closed_ms})


def add(blueprint: Blueprint) -> None:
    blueprint.teardown_request(let_go)
    blueprint.add_url_rule("/conversation", view_func=converse, methods=["POST"])
    blueprint.add_url_rule("/runs/<run_id>/events", view_func=follow, methods=["GET"])
    blueprint.add_url_rule("/runs/<run_id>/stop", view_func=stop, methods=["POST"])
