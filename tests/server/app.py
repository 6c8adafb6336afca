"""The application that the server tests run under real gunicorn: a host's own Flask project with a chat in it.

Settings come from the environment. Every answer says which process gave it, so that a test can choose its worker.
"""

import atexit
import gc
import os
import socket
import time
from collections.abc import Iterator

gc.disable()  # what is imported stays; looking through it again and again is a fifth of a worker's start

from flask import Flask, Response  # noqa: E402

from flaskchat import FlaskChat, Request  # noqa: E402

if "TEST_HOST" in os.environ:  # another machine, as far as the others can tell
    socket.gethostname = lambda: os.environ["TEST_HOST"]

app = Flask(__name__, instance_path=os.environ["TEST_INSTANCE"])
app.config["FLASKCHAT_URL_PREFIX"] = ""
# Tests send as one visitor from one address what a thousand would; those of the limits set them.
UNLIMITED = ("MAX_RUNS_PER_OWNER", "MESSAGES_PER_MINUTE", "MAX_STREAMS_PER_OWNER", "MAX_STREAMS_PER_ADDRESS")
app.config.update({f"FLASKCHAT_{name}": 0 for name in (*UNLIMITED, "CONNECTIONS_PER_SECOND")})
app.config.update({key: value for key, value in os.environ.items() if key.startswith("FLASKCHAT_")})
if "SECRET_KEY" in os.environ:
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
chat = FlaskChat(app)


@chat.model("count")
def count(request: Request) -> Iterator[str]:
    """`count` writes as many words as the question says, at as many a second: "100 50"."""
    number, rate = (float(word) for word in request.text.split()[:2])
    for n in range(int(number)):
        yield f"word{n} ü€😀 "
        if rate:
            time.sleep(1 / rate)


@chat.model("silent")
def silent(request: Request) -> Iterator[str]:
    """Says one word and then nothing for a minute."""
    yield "Well "
    time.sleep(60)
    yield "bye"


@chat.model("raises")
def raises(request: Request) -> Iterator[str]:
    yield "Before "
    raise RuntimeError("secret inner words")


@app.get("/plain")
def plain() -> str:
    """A route of the host's own."""
    return "plain"


@app.get("/gauge")
def gauge() -> dict[str, int]:
    """What this worker holds, beside what can be seen from outside.

    Only of this thread: each of a pool's threads has two greenlets too, and the pool has more of them after a crowd.
    """
    import greenlet  # not where the application runs on threads

    def root(one: greenlet.greenlet) -> greenlet.greenlet:
        while one.parent is not None:
            one = one.parent
        return one

    ours = root(greenlet.getcurrent())
    found = [o for o in gc.get_objects() if isinstance(o, greenlet.greenlet) and o and root(o) is ours]
    return {"greenlets": len(found)}


@app.after_request
def name_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response


gc.enable()
atexit.register(gc.freeze)  # nor is it looked through at the exit, when all of it goes at once
