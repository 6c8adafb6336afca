"""The floor: what system calls and their loop cost in Python. Passes on the bytes of the model as they come, looks at
nothing, keeps nothing, and answers nobody who asks for anything else.
"""

import os
import select
import socket
from typing import Any
from urllib.parse import urlsplit

BODY = b'{"model": "stand-in", "stream": true, "messages": [{"role": "user", "content": "How are you?"}]}'


def main() -> None:
    model = urlsplit(os.environ["OPENAI_BASE_URL"])
    head = f"POST {model.path}/chat/completions HTTP/1.1\r\nHost: {model.netloc}\r\nContent-Type: application/json\r\n"
    question = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=2048)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    ends: dict[int, tuple[Any, Any]] = {}
    """By descriptor: from where to where."""
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                client.setblocking(False)
                ends[client.fileno()] = (client, None)
                poller.register(client.fileno(), select.EPOLLIN)
                continue
            source, target = ends[fd]
            try:
                data = source.recv(16384)
                if data and target is not None:
                    target.send(data)
            except OSError:
                data = b""
            if data and target is None:  # a client's request
                poller.unregister(fd)
                if data.startswith(b"POST"):
                    answer = socket.create_connection((model.hostname, model.port))
                    answer.setblocking(False)
                    answer.send(question)
                    ends[answer.fileno()] = (answer, source)
                    poller.register(answer.fileno(), select.EPOLLIN)
                elif data.startswith(b"GET /held"):
                    source.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\n")
                else:
                    source.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    source.close()
                    del ends[fd]
            elif not data:
                poller.unregister(fd)
                del ends[fd]
                source.close()
                if target is not None:
                    target.close()


if __name__ == "__main__":
    main()
