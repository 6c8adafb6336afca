"""A relay as one writes it with FastAPI: an asynchronous generator around the openai SDK."""

import asyncio
import json
from collections.abc import AsyncIterator

import openai
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()
client = openai.AsyncOpenAI(api_key="none", max_retries=0)  # OPENAI_BASE_URL says where


@app.post("/conversation")
async def converse() -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        answer = await client.chat.completions.create(
            model="stand-in", messages=[{"role": "user", "content": "How are you?"}], stream=True
        )
        number = 0
        async for chunk in answer:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                number += 1
                yield f"id: {number}\nevent: delta\ndata: {json.dumps({'text': text})}\n\n"
        yield "event: done\ndata: {}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/held")
async def held() -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        yield "data: {}\n\n"
        await asyncio.sleep(3600)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/healthz")
async def health() -> str:
    return "ok"
