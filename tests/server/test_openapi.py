"""The OpenAPI document against the server that it describes: no 5xx, no status and no shape that it does not name.

As the owner of what the ids name, as a stranger, and as nobody where somebody must be signed in. The short form makes
a few hundred requests of each, the long form some thousand; which ones, a printed seed says. Only in the long form it
differs from run to run.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from flask import Flask

from flaskchat import openapi
from flaskchat.errors import model_codes, problem_codes
from flaskchat.models import Event, Reset
from flaskchat.testing import ChatClient
from tests.conftest import Server
from tests.hosts import host
from tests.server.client import Client

PLACEHOLDER = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
NOT_API = {"/", "/c/{conversation_id}", "/assets/{filename}"}
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method",
)  # fmt: skip
STREAMS_FOR_LONG = {"/sse"}
"""Answers that take ten seconds each; they are tested elsewhere."""


def document(app: Flask) -> dict[str, Any]:
    result = app.test_cli_runner().invoke(args=["chat", "openapi"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


def test_the_document_names_every_route_of_the_api_and_no_other(tmp_path: Path) -> None:
    app = host(tmp_path, url_prefix="/talk")
    described = document(app)
    assert described["servers"] == [{"url": "/talk"}]
    there = {
        (PLACEHOLDER.sub(r"{\1}", rule.rule.removeprefix("/talk")), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("flaskchat.")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    named = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert named == {(path, method) for path, method in there if path not in NOT_API}


def test_every_answer_of_the_document_has_its_words_and_every_reference_leads_somewhere(tmp_path: Path) -> None:
    described = document(host(tmp_path))
    text = json.dumps(described)
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in described["components"]["schemas"]
    for methods in described["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert all(answer["description"] for answer in operation["responses"].values())


def test_no_schema_of_the_document_hides_another_of_its_name(tmp_path: Path) -> None:
    schemas = document(host(tmp_path))["components"]["schemas"]
    for name, schema in openapi.SCHEMAS.items():
        assert schemas[name] == schema, name


def test_the_document_describes_every_event_as_it_is_sent(tmp_path: Path) -> None:
    app = host(tmp_path)
    described = document(app)
    schemas = described["components"]["schemas"]
    fields = {}
    for one in schemas["Event"]["oneOf"]:
        name = one["properties"]["data"]["contentSchema"]["$ref"].rpartition("/")[2]
        fields[one["properties"]["event"]["const"]] = list(schemas[name]["properties"])
        assert ("id" in one["required"]) == (name != "Reset")
    assert fields == {kind.event: list(kind.__struct_fields__) for kind in (*get_args(Event), Reset)}
    with ChatClient(app) as chat:
        events = chat.ask("hello you").events
    assert {event.name for event in events} == {"start", "delta", "done"}
    for event in events:
        assert list(event.data) == fields[event.name]
    for path, method in (("/conversation", "post"), ("/runs/{run_id}/events", "get")):
        stream = described["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
        assert stream == {"schema": {"$ref": "#/components/schemas/Event"}}


def test_the_document_names_every_code_of_an_error_with_its_status(tmp_path: Path) -> None:
    described = document(host(tmp_path))
    schemas = described["components"]["schemas"]
    codes = problem_codes()
    assert schemas["Problem"]["properties"]["code"]["examples"] == [code for some in codes.values() for code in some]
    assert schemas["Error"]["properties"]["code"]["examples"] == model_codes()
    for methods in described["paths"].values():
        for operation in methods.values():
            for status in operation["responses"].keys() - {"200", "204"}:
                words = operation["responses"][status]["description"]
                assert re.findall(r"`([a-z_]+)`", words.partition("`code`:")[2]) == codes[int(status)]


def described_for(server: Server, tmp_path: Path, ids: dict[str, list[str]]) -> Path:
    """The document, with ids that name something and one that does not."""
    found = document(host(tmp_path / "described", url_prefix=""))
    for path in STREAMS_FOR_LONG:
        del found["paths"][path]
    for methods in found["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in ids:
                    parameter["schema"] = {"enum": [*ids[parameter["name"]], "unknown"]}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("who", ["owner", "stranger", "anonymous"])
def test_no_request_is_answered_with_what_the_document_does_not_say(
    serve: Callable[..., Server], tmp_path: Path, long: bool, who: str
) -> None:
    settings = {"FLASKCHAT_MODEL": "lines", "FLASKCHAT_DRAIN": "0.5", "SECRET_KEY": "for tests"}
    server = serve({**settings, "FLASKCHAT_IDENTITY_REQUIRED": str(who == "anonymous")}, app="tests.server.faulty:app")
    owner = Client(server.port)
    ids: dict[str, list[str]] = {"conversation_id": [], "run_id": []}
    if who != "anonymous":
        for number in range(4):
            stream = owner.send(f"{number} 5")
            start = json.loads(stream.rest()[0].data)
            for name, found in ids.items():
                found.append(start[name])
    stranger = Client(server.port)
    stranger.get("/").close()
    cookie = {"owner": owner.cookie, "stranger": stranger.cookie, "anonymous": ""}[who]
    seed = random.randrange(1 << 32) if long else 1
    print(f"seed {seed}")
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", str(described_for(server, tmp_path, ids)),
        "--url", server.url, "--seed", str(seed), "--max-examples", "300" if long else "8",
        "--phases", "examples,coverage,fuzzing" if long or who == "owner" else "fuzzing",
        "--request-timeout", "30", "--workers", "1", "--no-color",
        "--checks", ",".join(CHECKS),
        *(["-H", f"Cookie: {cookie}"] if cookie else []),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    print(done.stdout[-20_000:], done.stderr[-5_000:])
    assert done.returncode == 0
    assert re.search(r"[1-9]\d+ generated", done.stdout), "it asked nothing"
    owner.close()
    stranger.close()


def test_the_client_and_the_document_agree_on_a_reply(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        reply = chat.ask("hello")
        message = document(app)["components"]["schemas"]["Message"]
        for found in chat.conversation(reply.conversation_id)["messages"]:
            assert set(found) == set(message["required"])
        model = document(app)["components"]["schemas"]["Models"]["properties"]["items"]["items"]
        for found in chat.client.get("/chat/models").json["items"]:
            assert set(found) == set(model["required"])
