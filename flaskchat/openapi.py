"""The HTTP API as an OpenAPI 3.1 document: what `flask chat openapi` prints. Pure; a test holds it against the routes.

Bodies are described by the structs that decode them, and events by those that are encoded, so that they cannot differ
from what is taken and sent; codes of errors are those that the errors name.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from .chat import Body
from .config import Settings
from .errors import model_codes, problem_codes
from .models import Event, Reset, Role, RunState
from .store.change import Change

PROBLEMS = {
    400: "The request is not HTTP as it should be.",
    401: "Nobody is signed in, and somebody must be.",
    403: "Another site's page asks for this.",
    404: "There is no such thing, or it is somebody else's.",
    408: "The body came too slowly.",
    409: "A reply is already being written here; `run_id` says which.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request is invalid; `errors` names each field.",
    429: "Over a limit; `Retry-After` says when trying again may help.",
    503: "Not now: full, leaving, or without its database; `Retry-After` says when trying again may help.",
}
CODES = problem_codes()
WRITES = (400, 401, 403, 408, 413, 415, 422)
READS = (400, 401, 403, 503)

TEXT = {"type": "string"}
MAYBE_TEXT = {"type": ["string", "null"]}
ID = {"type": "string", "pattern": r"^[A-Za-z0-9._:-]{1,128}$"}
STATUS = {"enum": [*get_args(RunState)]}
SEQ = {"type": "string", "pattern": "^[1-9][0-9]*$"}
EVENTS = (*get_args(Event), Reset)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Any] = {
    "Problem": {
        "description": "RFC 9457, with a stable `code`. What a host refuses by itself has HTTP's own name as its code.",
        "type": "object",
        "properties": {
            "type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT,
            "code": TEXT | {"examples": [code for codes in CODES.values() for code in codes]},
            "errors": _list(_object(field=TEXT, reason=TEXT)), "run_id": TEXT,
            "retry_after": {"type": "number", "description": "Seconds."},
        },
        "required": ["type", "title", "status", "detail", "code"],
    },
    "ConversationItem": _object(
        id=TEXT, title=TEXT, model=MAYBE_TEXT, updated_at={"type": "string", "format": "date-time"},
        running_run_id=MAYBE_TEXT,
    ),
    "Conversations": _object(items=_list(_ref("ConversationItem")), next_cursor=MAYBE_TEXT),
    "Message": _object(
        id=TEXT, parent_id=MAYBE_TEXT, role={"enum": [*get_args(Role)]}, text=TEXT, parts=_list({"type": "object"}),
        model=MAYBE_TEXT, status=STATUS, run_id=MAYBE_TEXT, finish_reason=MAYBE_TEXT,
        usage={"anyOf": [_ref("Usage"), {"type": "null"}]}, error={"type": ["object", "null"]},
        created_at={"type": "string", "format": "date-time"},
    ),
    "Conversation": _object(
        id=TEXT, title=TEXT, model=MAYBE_TEXT, system_prompt=MAYBE_TEXT, current_leaf_id=MAYBE_TEXT,
        messages=_list(_ref("Message")), running=_list(_object(run_id=TEXT, message_id=TEXT)),
    ),
    "Models": _object(
        items=_list(_object(id=TEXT, label=TEXT, default={"type": "boolean"}, capabilities=_list(TEXT)))
    ),
    "Run": _object(run_id=TEXT, state=STATUS, upstream_closed_ms={"type": ["number", "null"]}),
    "Health": _object(status={"const": "ok"}),
    "Ready": _object(status={"const": "ready"}),
}  # fmt: skip


def _answer(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): _answer(_in_words(status), "application/problem+json", _ref("Problem"))
        for status in sorted(set(statuses))
    }


def _in_words(status: int) -> str:
    return f"{PROBLEMS[status]} `code`: {', '.join(f'`{code}`' for code in CODES[status])}."


def _json(name: str) -> dict[str, Any]:
    return {"200": _answer(name, "application/json", _ref(name))}


def _event(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """One kind of event by the fields of its frame. OpenAPI before 3.2 has no word for the items of a stream: by custom
    the schema is that of each of them, and tools take it so.
    """
    seq: dict[str, Any] = {} if name == Reset.event else {"id": SEQ}
    json = TEXT | {"contentMediaType": "application/json", "contentSchema": data}
    found = _object(**seq, event={"const": name}, data=json)
    found["properties"]["retry"] = {"type": "integer", "description": "Milliseconds; of the first event that is sent."}
    return found


STREAM = {
    "200": _answer(
        "Server-sent events: the run's log from the cursor on, then live. The schema is that of each event. In silence "
        "come comments, `: hb`. What ends without `done`, `error`, `stopped` or `interrupted` was cut: follow the run "
        "from the last `id` on.",
        "text/event-stream", _ref("Event"),
    )
}  # fmt: skip
DEMO = {"200": _answer("Server-sent events without a name.", "text/event-stream", _object(id=SEQ, data=TEXT))}
EMPTY = {"204": {"description": "Done; nothing to say."}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": ID}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _paths(body: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    conversation, run = _in_path("conversation_id"), _in_path("run_id")
    cursor = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": TEXT}
    return {
        "/conversation": {
            "post": {
                "operationId": "converse", "summary": "Send, regenerate or continue, and follow the reply.",
                "requestBody": _body(body), "responses": STREAM | _problems(*WRITES, 404, 409, 429, 503),
            },
        },
        "/runs/{run_id}/events": {
            "get": {
                "operationId": "follow", "summary": "Follow a reply, from the event after the cursor.",
                "parameters": [run, cursor, _query("last_event_id", TEXT, "Where a header cannot be set.")],
                "responses": STREAM | EMPTY | _problems(400, 401, 403, 404, 429),
            },
        },
        "/runs/{run_id}/stop": {
            "post": {
                "operationId": "stop", "summary": "Stop a reply; what was written is kept.", "parameters": [run],
                "responses": _json("Run") | _problems(*READS, 404),
            },
        },
        "/conversations": {
            "get": {
                "operationId": "list", "summary": "List and search, the newest first.",
                "parameters": [
                    _query("q", TEXT, "Words that the title or a text must contain."),
                    _query("cursor", TEXT, "`next_cursor` of the page before."),
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Items of one page."),
                ],
                "responses": _json("Conversations") | _problems(*READS, 422),
            },
        },
        "/conversations/{conversation_id}": {
            "get": {
                "operationId": "read", "summary": "One conversation with all its messages.",
                "parameters": [conversation], "responses": _json("Conversation") | _problems(*READS, 404),
            },
            "patch": {
                "operationId": "change", "summary": "Change what is given.", "parameters": [conversation],
                "requestBody": _body(change), "responses": _json("Conversation") | _problems(*WRITES, 404, 503),
            },
            "delete": {
                "operationId": "delete", "summary": "Delete it, with everything that belongs to it.",
                "parameters": [conversation], "responses": EMPTY | _problems(*READS, 404),
            },
        },
        "/conversations/{conversation_id}/export": {
            "get": {
                "operationId": "export", "summary": "Download it.",
                "parameters": [conversation, _query("format", {"enum": ["json", "markdown"]}, "`json` unless given.")],
                "responses": {
                    "200": {
                        "description": "The file.",
                        "content": {
                            "application/json": {"schema": _ref("Conversation")},
                            "text/markdown": {"schema": TEXT},
                        },
                    },
                    **_problems(*READS, 404, 422),
                },
            },
        },
        "/models": {
            "get": {
                "operationId": "models", "summary": "The models to choose from.",
                "responses": _json("Models") | _problems(400, 401, 403),
            },
        },
        "/sse": {
            "get": {
                "operationId": "sse", "summary": "Ten messages, one a second: to check a proxy.",
                "parameters": [cursor], "responses": DEMO | EMPTY | _problems(400, 403, 429, 503),
            },
        },
        "/healthz": {
            "get": {
                "operationId": "healthz", "summary": "Whether the process can answer.",
                "responses": _json("Health") | _problems(400),
            },
        },
        "/readyz": {
            "get": {
                "operationId": "readyz", "summary": "Whether it should be sent more.",
                "responses": _json("Ready") | _problems(400, 503),
            },
        },
        "/metrics": {
            "get": {
                "operationId": "metrics", "summary": "What was counted, for Prometheus; with the operator's token.",
                "responses": {
                    "200": _answer("Prometheus' text format.", "text/plain", TEXT), **_problems(400, 401, 404, 503)
                },
            },
        },
    }  # fmt: skip


def document(settings: Settings, version: str) -> dict[str, Any]:
    """The whole document, for JSON."""
    (body, change, *events), of_structs = msgspec.json.schema_components(
        [Body, Change, *EVENTS], ref_template="#/components/schemas/{name}"
    )
    of_structs["Error"]["properties"]["code"]["examples"] = model_codes()
    event = {"oneOf": [_event(kind.event, data) for kind, data in zip(EVENTS, events, strict=True)]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flaskchat", "version": version,
            "description": "Pages, and the files that they use, are not part of it.",
        },
        "servers": [{"url": settings.url_prefix or "/"}],
        "paths": _paths(body, change),
        "components": {"schemas": {**SCHEMAS, "Event": event, **of_structs}},
    }  # fmt: skip
