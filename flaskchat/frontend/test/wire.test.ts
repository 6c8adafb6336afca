import assert from "node:assert/strict";
import { test } from "node:test";
import { RunStream } from "../src/stream.ts";
import type { RunEvent } from "../src/protocol.ts";
import { Wire } from "../src/wire.ts";
import type { WireEntry } from "../src/wire.ts";

const HEADERS = { "Content-Type": "text/event-stream", "Flaskchat-Run-Id": "run_1" };
const start = `id: 1\nevent: start\ndata: ${JSON.stringify({ run_id: "run_1", conversation_id: "c", message_id: "m", user_message_id: "u", model: "x", title: "" })}\n\n`;
const rest = 'id: 2\nevent: delta\ndata: {"text":"Hi"}\n\nid: 3\nevent: done\ndata: {"finish_reason":"stop"}\n\n';

/** A body that stays open after what it has, until it is aborted. */
function open(text: string, signal: AbortSignal): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(new TextEncoder().encode(text));
      signal.addEventListener("abort", () => controller.error(signal.reason));
    },
  });
  return new Response(body, { headers: HEADERS });
}

const told = (entries: WireEntry[]): string[] =>
  entries.map((entry) =>
    entry.kind === "request" ? `${entry.method} ${entry.after}` : entry.kind === "end" ? entry.reason : entry.kind === "head" ? String(entry.status) : "bytes",
  );

test("the wire keeps the last of what came, by number and by size", () => {
  const wire = new Wire();
  const tap = wire.tap();
  for (let at = 0; at < 3000; at++) tap({ kind: "bytes", bytes: new Uint8Array([at % 256]) });
  assert.equal(wire.entries.length, 2000);
  assert.deepEqual((wire.entries.at(-1) as { bytes: Uint8Array }).bytes, new Uint8Array([2999 % 256]));
  for (let at = 0; at < 100; at++) tap({ kind: "bytes", bytes: new Uint8Array(1 << 18) });
  const size = wire.entries.reduce((sum, entry) => sum + (entry.kind === "bytes" ? entry.bytes.length : 0), 0);
  assert.ok(size <= 2 << 20, `${size} bytes`);
  const seen: (WireEntry | null)[] = [];
  wire.onEntry = (entry) => seen.push(entry);
  wire.clear();
  tap({ kind: "head", status: 200 });
  assert.deepEqual([seen[0], (seen[1] as WireEntry).kind, wire.entries.length], [null, "head", 1]);
});

test("a plug that is pulled is a cut, and the resume says from where", async () => {
  const wire = new Wire();
  const asked: (string | null)[] = [];
  const events: RunEvent[] = [];
  const stream = new RunStream({
    runId: "run_1",
    eventsUrl: (run) => `/runs/${run}/events`,
    fetch: async (_, init) => {
      asked.push((init!.headers as Record<string, string>)["Last-Event-ID"] ?? null);
      return open(asked.length === 1 ? start : rest, init!.signal!);
    },
    onEvent: (event) => {
      events.push(event);
      if (event.event === "start") setTimeout(() => assert.ok(stream.plug()), 5);
    },
    tap: wire.tap(),
    clock: { setTimeout: (callback) => setTimeout(callback, 20), clearTimeout: (timer) => clearTimeout(timer as never), random: () => 0 },
  });
  assert.equal((await stream.run()).kind, "ended");
  assert.deepEqual(asked, [null, "1"]);
  assert.deepEqual(told(wire.entries), ["GET 0", "200", "bytes", "plug", "GET 1", "200", "bytes", "over"]);
  assert.deepEqual(events.map(({ event }) => event), ["start", "delta", "done"]);
  assert.equal(stream.plug(), false);
  const bytes = wire.entries.flatMap((entry) => (entry.kind === "bytes" ? [...entry.bytes] : []));
  assert.equal(new TextDecoder().decode(new Uint8Array(bytes)), start + rest);
});

test("a question that may not keep its stream is followed as soon as it has a name", async () => {
  const wire = new Wire();
  const events: RunEvent[] = [];
  const followed: [string, number][] = [];
  let aborted = false;
  const stream = new RunStream({
    ask: { url: "/conversation", body: { action: "send", message: { id: "1", text: "Hi" } } },
    eventsUrl: (run) => `/runs/${run}/events`,
    fetch: async (_, init) => {
      init!.signal!.addEventListener("abort", () => (aborted = true));
      return open(start, init!.signal!);
    },
    keep: async () => false,
    follow: async (run, after, signal) => {
      followed.push([run, after]);
      return open(start + rest, signal);
    },
    onEvent: (event) => events.push(event),
    tap: wire.tap(),
  });
  assert.equal((await stream.run()).kind, "ended");
  assert.ok(aborted);
  assert.deepEqual(followed, [["run_1", 0]]);
  assert.deepEqual(events.map(({ event }) => event), ["start", "delta", "done"]);
  assert.deepEqual(told(wire.entries), ["POST 0", "200", "moved", "GET 0", "200", "bytes", "over"]);
});
