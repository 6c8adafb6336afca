"""A model's server that behaves as badly as it is told to: a real process, standard library only.

    python -m tests.server.badmodel --port 0        the first line it prints is its port

It speaks `/v1/chat/completions`, `/v1/messages`, `/v1/models`, and tells at `GET /stats` what it saw. How it answers is
said by a JSON object anywhere in the newest user message with one, or by the model's name as `key=value,key=value`:

    {"tag": "t1", "tokens": 50, "rate": 20, "fault": "reset", "after": 5}

    tag         under which /stats counts this request; also the seed of its text
    tokens      how many (20); rate: tokens a second, 0 for all at once; delay: seconds before the first one
    text        this text, in place of one made from the seed, in pieces of `size` characters (4)
    reasoning   tokens of reasoning before the text; tool: true for a tool call at the end
    finish      the finish reason ("stop"); framing: "chunked" or "close" (the body ends with the connection)
    fault       what goes wrong, see FAULTS; after: how many tokens come first (5); hold: seconds a silence lasts
    times       how many requests of that tag a status fault hits (all); retry_after: its Retry-After

A client that closes its connection is seen at once, also in silence: `closed_at` in /stats is the time of
`time.monotonic()`, which all processes of a host share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from tests.server.dialects import Anthropic, Dialect, OpenAI

STATUSES = ("302", "400", "401", "404", "422", "429", "500", "502", "503", "504", "529")
FAULTS = (
    *STATUSES,
    "silent-before-head",
    "silent-before-first-token",
    "stall",  # silence after `after` tokens
    "error",  # an error inside the stream
    "reset",  # RST
    "close",  # the sending half is closed, without an end of the body
    "html200",  # a page in place of a stream
    "invalid-json",
    "invalid-utf8",  # bytes that are no UTF-8 within the text
    "huge-line",  # a line of 50 MB
    "no-done",  # no [DONE] (no message_stop)
    "no-finish",  # a proper end of the body, but neither finish reason nor [DONE]
    "one-byte",  # one byte per packet
    "split",  # packets that end within a character
    "fields",  # CR, LF and whole SSE fields within the text
    "surrogates",  # characters outside the BMP as escapes, the halves in two deltas
    "json",  # the reply as one JSON document, not streamed
)
HUGE = 50_000_000
ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "the", "log", "is", "read", "once", "über", "naïve", "日本語", "🙂", "👩‍💻", "**bold**", "`code`", "a", "reply",
    "streams", "\n\n", "\n- item", "\n## Head\n", "…", "“quoted”", "Ω", "and", "then", "кот", "\t", "<b>", "&amp;",
    "e\u0301",
)  # fmt: skip
FIELDS = ("\rdata: forged", "\r\nevent: done", "\nid: 99\n\n", "\u2028data: x", "\u0085", "data: [DONE]\n\n")


def tokens_of(directive: dict[str, Any]) -> list[str]:
    """The pieces of text that a request with this directive is sent, where nothing cuts it short."""
    if "text" in directive:
        text, size = str(directive["text"]), int(directive.get("size", 4))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
    else:
        dice = random.Random(str(directive.get("seed", directive.get("tag", ""))))
        pieces = [dice.choice(WORDS) + " " for _ in range(int(directive.get("tokens", 20)))]
    fault, after = directive.get("fault"), int(directive.get("after", 5))
    if fault == "fields":
        pieces[after:after] = FIELDS
    elif fault == "surrogates":
        pieces[after:after] = ["🙂", "a👩‍💻b"]
    elif fault == "invalid-utf8":
        pieces[after:after] = ["\ufffdx"]
    return pieces


def text_of(directive: dict[str, Any]) -> str:
    """The whole reply to a request with this directive, as a client should have it in the end."""
    return "".join(tokens_of(directive))


def text_before_fault(directive: dict[str, Any]) -> str:
    """What has come when a fault strikes after `after` tokens."""
    return "".join(tokens_of(directive)[: int(directive.get("after", 5))])


def directive_of(body: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = dict(defaults)
    for pair in str(body.get("model", "")).split(","):
        key, equals, value = pair.partition("=")
        if equals:
            with contextlib.suppress(ValueError):
                value = json.loads(value)
            found[key] = value
    texts = [message["content"] for message in body.get("messages", ()) if message.get("role") == "user"]
    newest = next((text for text in reversed(texts) if isinstance(text, str) and "{" in text), None)
    if newest is not None:  # not always the last: a reply that is continued is asked for in other words
        found.update(_last_object(newest))
    found["fault"] = str(found["fault"]) if found.get("fault") is not None else None
    if found["fault"] not in (None, *FAULTS):
        raise ValueError(f"no such fault: {found['fault']}")
    return found


def _last_object(text: str) -> dict[str, Any]:
    """The last JSON object in a text: questions between which no reply has text are sent as one."""
    found: dict[str, Any] = {}
    at = text.find("{")
    while at >= 0:
        try:
            found, at = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at += 1
        at = text.find("{", at)
    return found


class Server:
    def __init__(self, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.total = _counters()
        self.tags: dict[str, dict[str, Any]] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            lines = (line.partition(":") for line in head.split("\r\n")[1:])
            headers = {name.lower(): value.strip() for name, _, value in lines}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if path == "/stats":
                tokens = sum(counters["tokens"] for counters in self.tags.values())
                await answer(writer, 200, {**self.total, "tokens": tokens, "tags": self.tags})
            elif path == "/v1/models":
                await answer(writer, 200, {"object": "list", "data": [{"id": "badmodel", "object": "model"}]})
            elif method == "POST" and path in ("/v1/chat/completions", "/v1/messages"):
                dialect = OpenAI() if path.endswith("completions") else Anthropic()
                await self.generate(reader, writer, dialect, json.loads(body))
            else:
                await answer(writer, 404, {"error": f"no {method} {path}"})
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            print(f"badmodel: {error!r}", file=sys.stderr, flush=True)
            await answer(writer, 400, {"error": {"message": repr(error)}})
        finally:
            writer.close()

    async def generate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialect: Dialect, body: dict[str, Any]
    ) -> None:
        """Answer, while the socket is watched: the client says nothing more, so what can be read is its end."""
        directive = directive_of(body, self.defaults)
        mine = self.tags.setdefault(str(directive.get("tag", "")), _counters())
        mine["body"] = body
        self.count(mine, posts=1, live=1)
        reply = asyncio.create_task(Reply(writer, dialect, directive, mine).run())
        gone = asyncio.create_task(reader.read(1))
        outcome = "aborted"
        try:
            await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
            if reply.done() and reply.exception() is None:
                outcome = reply.result()
        finally:
            if outcome == "aborted":
                self.total["closed_at"].append(time.monotonic())
                mine["closed_at"].append(self.total["closed_at"][-1])
            self.count(mine, live=-1, **{outcome: 1})
            for task in (reply, gone):
                task.cancel()
            await asyncio.gather(reply, gone, return_exceptions=True)

    def count(self, mine: dict[str, Any], **changes: int) -> None:
        for counters in (self.total, mine):
            for name, change in changes.items():
                counters[name] += change


def _counters() -> dict[str, Any]:
    return {"posts": 0, "begun": 0, "live": 0, "finished": 0, "faults": 0, "aborted": 0, "tokens": 0, "closed_at": []}


async def answer(writer: asyncio.StreamWriter, status: int, body: Any, **headers: str) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"{head}Connection: close\r\n{extra}\r\n".encode() + data)
    await writer.drain()


class Reply:
    """One reply with its fault. `run` returns how it ended: finished, or faults when we ended it."""

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        dialect: Dialect,
        directive: dict[str, Any],
        counters: dict[str, Any],
    ) -> None:
        self.writer = writer
        self.dialect = dialect
        self.directive = directive
        self.counters = counters
        self.fault = directive["fault"]
        self.after = int(directive.get("after", 5))
        self.chunked = directive.get("framing", "chunked") == "chunked"
        self.tokens = tokens_of(directive)
        self.finish = str(directive.get("finish", "stop"))

    async def run(self) -> str:
        fault, dialect = self.fault, self.dialect
        if fault in STATUSES and self.counters["posts"] <= int(self.directive.get("times", 1 << 30)):
            return await self.refuse(int(fault))
        self.counters["begun"] += 1  # generations: what was refused before may be asked again
        if fault == "silent-before-head":
            await self.silence()
        if fault == "html200":
            await answer(self.writer, 200, "<!doctype html><title>Welcome</title><p>Please sign in.")
            return "faults"
        if fault == "json":
            await answer(self.writer, 200, dialect.whole("".join(self.tokens), self.finish, len(self.tokens)))
            return "finished"
        framing = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        kind = b"Content-Type: text/event-stream; charset=utf-8\r\n"
        self.writer.write(b"HTTP/1.1 200 OK\r\n%b%bConnection: close\r\n\r\n" % (kind, framing))
        await self.writer.drain()
        if fault == "silent-before-first-token":
            await self.silence()
        await asyncio.sleep(float(self.directive.get("delay", 0)))
        await self.send(dialect.start())
        for number in range(int(self.directive.get("reasoning", 0))):
            await self.send(dialect.reasoning(f"thought {number} "))
        async for number, token in self.paced():
            if number == self.after and await self.strike():
                return "faults"
            await self.send_token(number, token)
            self.counters["tokens"] += 1
        if len(self.tokens) <= self.after and await self.strike():
            return "faults"
        if self.directive.get("tool"):
            await self.send(dialect.tool())
        if fault != "no-finish":
            await self.send(dialect.finish(self.finish, len(self.tokens)))
        if fault not in ("no-done", "no-finish"):
            await self.send(dialect.done())
        if self.chunked:
            self.writer.write(b"0\r\n\r\n")
            await self.writer.drain()
        return "finished"

    async def paced(self) -> AsyncIterator[tuple[int, str]]:
        rate, started = float(self.directive.get("rate", 0)), time.monotonic()
        for number, token in enumerate(self.tokens):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()) if rate else 0)
            yield number, token

    async def refuse(self, status: int) -> str:
        headers = {"Location": "https://example.test/elsewhere"} if status == 302 else {}
        if "retry_after" in self.directive:
            headers["Retry_After"] = str(self.directive["retry_after"])
        await answer(self.writer, status, {"error": {"message": f"status {status}"}}, **headers)
        return "faults"

    async def strike(self) -> bool:
        """The fault whose time has come. Returns whether the reply has ended with it."""
        if self.fault == "stall":
            await self.silence()
        elif self.fault == "error":
            await self.send(self.dialect.error())
            return True
        elif self.fault == "invalid-json":
            await self.send(b'data: {"choices": [{"delta"\n\n')
            return True
        elif self.fault == "huge-line":
            self.chunked = False  # the framing is not what is tested
            self.writer.write(b"%x\r\n" % HUGE + b"data: ")
            for _ in range(HUGE // 50_000):
                self.writer.write(b"x" * 50_000)
                await self.writer.drain()
            return True
        elif self.fault == "reset":
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            return True
        elif self.fault == "close":
            self.writer.write_eof()
            await asyncio.sleep(3600)  # until the client closes its half
        return False

    async def silence(self) -> None:
        await asyncio.sleep(float(self.directive.get("hold", 3600)))

    async def send_token(self, number: int, token: str) -> None:
        if self.fault == "surrogates" and any(ord(character) > 0xFFFF for character in token):
            units = token.encode("utf-16-le")
            for at in range(0, len(units), 2):
                unit = units[at : at + 2].decode("utf-16-le", "surrogatepass")
                await self.send(self.dialect.text("UNIT").replace(b"UNIT", b"\\u%04x" % ord(unit)))
        elif self.fault == "invalid-utf8" and number == self.after:
            await self.send(self.dialect.text("BAD").replace(b"BAD", b"\xffx"))
        else:
            await self.send(self.dialect.text(token))

    async def send(self, data: bytes) -> None:
        if self.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        for piece in self.packets(data):
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def packets(self, data: bytes) -> Iterator[bytes]:
        if self.fault == "one-byte":
            yield from (data[at : at + 1] for at in range(len(data)))
        elif self.fault == "split" and (cut := next((at for at, byte in enumerate(data) if byte & 0xC0 == 0x80), 0)):
            yield data[:cut]
            yield data[cut:]
        else:
            yield data


async def serve(options: argparse.Namespace) -> None:
    tls = None
    if options.cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.cert, options.key)
    server = Server({"tokens": options.tokens, "rate": options.rate})
    listener = await asyncio.start_server(server.connected, "127.0.0.1", options.port, ssl=tls, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    if options.until_eof:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await asyncio.Event().wait()


class Running:
    """A badmodel in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int, scheme: str) -> None:
        self.process = process
        self.port = port
        self.origin = f"{scheme}://127.0.0.1:{port}"
        self.base_url = f"{self.origin}/v1"

    def stats(self, tag: str | None = None) -> dict[str, Any]:
        """What it saw, under one tag or in all; zeros for a tag it has not seen."""
        with urllib.request.urlopen(f"{self.origin}/stats", timeout=60) as response:
            found = json.load(response)
        return dict(found if tag is None else found["tags"].get(tag, _counters()))


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    """Start one, and end it with the block; it also ends when this process dies."""
    command = [sys.executable, "-m", "tests.server.badmodel", "--port", "0", "--until-eof", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Running(process, int(process.stdout.readline()), "https" if "--cert" in arguments else "http")
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A model's server that behaves as badly as it is told to.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=20, help="of a reply whose request does not say")
    parser.add_argument("--rate", type=float, default=0, help="tokens a second of a reply whose request does not say")
    parser.add_argument("--cert", help="a certificate, for TLS")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args()))
