// A relay as one writes it with Node's own http and fetch: each token is sent on as an event, and nothing is kept.
import { createServer } from "node:http";

const address = `${process.env.OPENAI_BASE_URL}/chat/completions`;
const question = JSON.stringify({
  model: "stand-in", stream: true, messages: [{ role: "user", content: "How are you?" }],
});

async function converse(response) {
  const left = new AbortController();
  response.on("close", () => left.abort());
  const answer = await fetch(address, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: question, signal: left.signal,
  });
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const decoder = new TextDecoder();
  let rest = "";
  let id = 0;
  for await (const bytes of answer.body) {
    const frames = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (frame === "data: [DONE]") continue;
      const text = JSON.parse(frame.slice("data: ".length)).choices[0].delta.content;
      if (text) response.write(`id: ${++id}\nevent: delta\ndata: ${JSON.stringify({ text })}\n\n`);
    }
  }
  response.end("event: done\ndata: {}\n\n");
}

const server = createServer((request, response) => {
  request.resume();
  if (request.url === "/conversation") {
    converse(response).catch(() => response.destroy());
  } else if (request.url === "/held") {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write("data: {}\n\n");
  } else {
    response.end("ok");
  }
});
server.listen(Number(process.env.PORT), "127.0.0.1", 4096);
