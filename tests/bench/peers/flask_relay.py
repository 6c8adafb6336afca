"""A relay as one writes it first with Flask: a generator around the openai SDK, under gunicorn's gevent worker."""

import json
from collections.abc import Iterator

import gevent
import openai
from flask import Flask, Response

app = Flask(__name__)
client = openai.OpenAI(api_key="none", max_retries=0)  # OPENAI_BASE_URL says where


@app.post("/conversation")
def converse() -> Response:
    def events() -> Iterator[str]:
        answer = client.chat.completions.create(
            model="stand-in", messages=[{"role": "user", "content": "How are you?"}], stream=True
        )
        number = 0
        for chunk in answer:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                number += 1
                yield f"id: {number}\nevent: delta\ndata: {json.dumps({'text': text})}\n\n"
        yield "event: done\ndata: {}\n\n"

    return Response(events(), mimetype="text/event-stream")


@app.get("/held")
def held() -> Response:
    def events() -> Iterator[str]:
        yield "data: {}\n\n"
        gevent.sleep(3600)

    return Response(events(), mimetype="text/event-stream")


@app.get("/healthz")
def health() -> str:
    return "ok"
