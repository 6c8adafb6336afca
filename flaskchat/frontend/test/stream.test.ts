import assert from "node:assert/strict";
import { test } from "node:test";
import { RunStream } from "../src/stream.ts";
import type { Clock, Connection, Outcome, StreamOptions } from "../src/stream.ts";
import { newId } from "../src/protocol.ts";
import type { RunEvent } from "../src/protocol.ts";

/** Time that passes when a test says so. */
class FakeClock implements Clock {
  now = 0;
  chance = 1;
  #timers = new Map<number, { at: number; callback: () => void }>();
  #next = 0;

  setTimeout(callback: () => void, delay: number): number {
    this.#timers.set(++this.#next, { at: this.now + delay, callback });
    return this.#next;
  }

  clearTimeout(handle: unknown): void {
    this.#timers.delete(handle as number);
  }

  random(): number {
    return this.chance;
  }

  /** Let everything that is ready happen, then let time pass to each timer that is due. */
  async pass(milliseconds: number): Promise<void> {
    const end = this.now + milliseconds;
    for (;;) {
      await settle();
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.now = Math.max(this.now, due[1].at);
      due[1].callback();
    }
    this.now = end;
  }
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}

interface Request {
  url: string;
  method: string;
  lastEventId: string | null;
  body: string | null;
}

/** One answer of the server: its head, and a body the test writes to. What was written before a cut arrives. */
class Answer {
  #queue: (Uint8Array | "end" | "cut")[] = [];
  #more: (() => void) | null = null;
  readonly response: Response;

  constructor() {
    const pull = async (controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> => {
      while (this.#queue.length === 0) await new Promise<void>((resolve) => (this.#more = resolve));
      const next = this.#queue.shift()!;
      if (next === "end") controller.close();
      else if (next === "cut") controller.error(new TypeError("network error"));
      else controller.enqueue(next);
    };
    const body = new ReadableStream<Uint8Array>({ pull }, { highWaterMark: 0 });
    const headers = { "Content-Type": "text/event-stream; charset=utf-8", "Flaskchat-Run-Id": "run_1" };
    this.response = new Response(body, { headers });
  }

  #put(step: Uint8Array | "end" | "cut"): this {
    this.#queue.push(step);
    this.#more?.();
    return this;
  }

  write(text: string): this {
    return this.#put(new TextEncoder().encode(text));
  }

  bytes(bytes: Uint8Array): this {
    return this.#put(bytes);
  }

  end(): this {
    return this.#put("end");
  }

  cut(): this {
    return this.#put("cut");
  }
}

type Reply = Answer | Response | "no connection" | "hangs";

class Harness {
  readonly clock = new FakeClock();
  readonly requests: Request[] = [];
  readonly events: RunEvent[] = [];
  readonly seqs: number[] = [];
  readonly connections: Connection[] = [];
  readonly replies: Reply[];
  readonly stream: RunStream;
  outcome: Outcome | null = null;
  aborted = 0;

  constructor(replies: Reply[], options: Partial<StreamOptions> = {}) {
    this.replies = replies;
    const ask = { url: "/conversation", body: { action: "send" as const, message: { id: "client-1", text: "Hi" } } };
    this.stream = new RunStream({
      ...(options.runId ? {} : { ask }),
      fetch: (url, init) => this.#fetch(url, init!),
      eventsUrl: (runId) => `/runs/${runId}/events`,
      onEvent: (event, seq) => {
        this.events.push(event);
        this.seqs.push(seq);
      },
      onConnection: (connection) => this.connections.push(connection),
      clock: this.clock,
      ...options,
    });
    void this.stream.run().then((outcome) => (this.outcome = outcome));
  }

  get text(): string {
    return this.events.reduce((text, event) => (event.event === "delta" ? text + event.text : event.event === "reset" ? event.text : text), "");
  }

  get last(): Connection {
    return this.connections.at(-1)!;
  }

  #fetch(url: string, init: RequestInit): Promise<Response> {
    const headers = init.headers as Record<string, string>;
    this.requests.push({ url, method: init.method ?? "GET", lastEventId: headers["Last-Event-ID"] ?? null, body: (init.body as string) ?? null });
    const reply = this.replies.shift() ?? "no connection";
    if (reply === "no connection") return Promise.reject(new TypeError("Failed to fetch"));
    const aborted = new Promise<never>((_, reject) => {
      init.signal!.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    });
    aborted.catch(() => undefined);
    if (reply === "hangs") return aborted;
    if (!(reply instanceof Answer)) return Promise.resolve(reply);
    // A real fetch breaks its body off when it is aborted.
    init.signal!.addEventListener("abort", () => {
      this.aborted += 1;
      reply.cut();
    });
    return Promise.resolve(reply.response);
  }
}

const START = { run_id: "run_1", conversation_id: "c_1", message_id: "m_2", user_message_id: "m_1", model: "m", title: "t" };
const frame = (seq: number, event: string, data: object): string => `id: ${seq}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
const start = `retry: 2000\n${frame(1, "start", START)}`;
const delta = (seq: number, text: string): string => frame(seq, "delta", { text });
const done = (seq: number): string => frame(seq, "done", { finish_reason: "stop", usage: null });
const problem = (status: number, code: string, headers: Record<string, string> = {}): Response =>
  new Response(JSON.stringify({ type: "about:blank", title: "No", status, detail: `Because ${code}.`, code }), {
    status,
    headers: { "Content-Type": "application/problem+json", ...headers },
  });

test("a reply is read to its terminal event", async () => {
  const harness = new Harness([new Answer().write(start + delta(2, "Hel") + delta(3, "lo") + done(4)).end()]);
  await harness.clock.pass(0);
  assert.equal(harness.text, "Hello");
  assert.deepEqual(harness.seqs, [1, 2, 3, 4]);
  assert.deepEqual(harness.outcome, { kind: "ended", event: { event: "done", finish_reason: "stop", usage: null } });
  assert.deepEqual(harness.requests.map(({ method, url }) => `${method} ${url}`), ["POST /conversation"]);
});

test("the body is read to the end that follows the terminal event, but not for ever", async () => {
  const open = new Answer().write(start + done(2));
  const harness = new Harness([open]);
  await harness.clock.pass(900);
  assert.deepEqual(harness.seqs, [1, 2], "the reply itself does not wait for it");
  assert.equal(harness.outcome, null);
  open.end();
  await harness.clock.pass(0);
  assert.equal(harness.outcome!.kind, "ended");
  assert.equal(harness.aborted, 0, "a browser may call a request a failure that is aborted at its end");
  const held = new Harness([new Answer().write(start + done(2))]);
  await held.clock.pass(3000);
  assert.equal(held.outcome!.kind, "ended");
  assert.equal(held.aborted, 1);
});

test("a reply cut at any byte is resumed from the last whole event, with nothing missing or twice", async () => {
  const whole = start + delta(2, "Grüße ") + ": hb\n" + delta(3, "🦜 ") + delta(4, "x") + done(5);
  const bytes = new TextEncoder().encode(whole);
  for (let cut = 0; cut < bytes.length; cut++) {
    const first = new Answer().bytes(bytes.slice(0, cut));
    if (cut % 2) first.cut();
    else first.end();
    const rest = (from: number): string => [delta(2, "Grüße "), delta(3, "🦜 "), delta(4, "x"), done(5)].slice(from - 1).join("");
    const second = new Answer();
    const harness = new Harness([first, second]);
    await harness.clock.pass(1500);
    const last = Number(harness.requests[1]?.lastEventId ?? 0);
    if (harness.outcome === null) second.write((last === 0 ? start + delta(2, "Grüße ") + rest(2) : rest(last))).end();
    await harness.clock.pass(0);
    assert.equal(harness.text, "Grüße 🦜 x", `cut at ${cut}`);
    assert.deepEqual(harness.seqs, [1, 2, 3, 4, 5], `cut at ${cut}`);
    assert.equal(harness.outcome!.kind, "ended");
  }
});

test("a stream that ends without a terminal event is resumed, at first without a word", async () => {
  const harness = new Harness([new Answer().write(start + delta(2, "a")).end(), "no connection", new Answer().write(delta(3, "b") + done(4)).end()]);
  await harness.clock.pass(0);
  assert.deepEqual(harness.last, { phase: "waiting", reason: "lost", attempt: 1, silent: true, sent: true });
  await harness.clock.pass(1000);
  assert.deepEqual(harness.last, { phase: "waiting", reason: "lost", attempt: 2, silent: false, sent: true });
  await harness.clock.pass(1000);
  assert.equal(harness.text, "ab");
  assert.deepEqual(harness.requests.map((request) => request.lastEventId), [null, "2", "2"]);
});

test("events that come twice are passed over, and a gap is read again", async () => {
  const gap = new Answer().write(start + delta(2, "a") + delta(2, "a") + delta(4, "c"));
  const harness = new Harness([gap, new Answer().write(delta(2, "a") + delta(3, "b") + delta(4, "c") + done(5)).end()]);
  await harness.clock.pass(1000);
  assert.equal(harness.text, "abc");
  assert.equal(harness.requests[1]!.lastEventId, "2");
});

test("a reset replaces the text and sets the cursor", async () => {
  const reset = `event: reset\ndata: ${JSON.stringify({ seq: 7, text: "All so far" })}\n\n`;
  const harness = new Harness([new Answer().write(start + delta(2, "x")).cut(), new Answer().write(reset + delta(8, ", and more")).cut(), new Answer().write(done(9)).end()]);
  await harness.clock.pass(2000);
  assert.equal(harness.text, "All so far, and more");
  assert.equal(harness.requests[2]!.lastEventId, "8");
  assert.equal(harness.outcome!.kind, "ended");
});

test("silence of two heartbeats and a margin is a drop, a heartbeat is not silence", async () => {
  const first = new Answer().write(start + delta(2, "a"));
  const harness = new Harness([first, new Answer().write(delta(3, "b") + done(4)).end()]);
  await harness.clock.pass(30_000);
  first.write(": hb\n");
  await harness.clock.pass(34_000);
  assert.equal(harness.requests.length, 1);
  await harness.clock.pass(2_000);
  assert.equal(harness.requests.length, 2);
  assert.equal(harness.text, "ab");
});

test("a server that takes the connection and never answers is a drop", async () => {
  const harness = new Harness(["hangs", new Answer().write(start + done(2)).end()]);
  await harness.clock.pass(36_000);
  assert.equal(harness.requests.length, 2);
  assert.equal(harness.outcome!.kind, "ended");
});

test("waits grow, are bounded, and end when the connection is back", async () => {
  const harness = new Harness([new Answer().write(start).cut()]);
  const times: number[] = [];
  for (let attempt = 1; attempt <= 9; attempt++) {
    const before = harness.requests.length;
    const from = harness.clock.now;
    while (harness.requests.length === before && harness.clock.now < from + 60_000) await harness.clock.pass(100);
    times.push(harness.clock.now - from);
  }
  assert.ok(times.every((time, index) => index === 0 || time >= times[index - 1]! - 100), String(times));
  assert.ok(times.at(-1)! <= 15_100 && times.at(-1)! > 14_000, String(times));
  harness.stream.offline = true;
  await harness.clock.pass(100);
  harness.replies.push(new Answer().write(done(2)).end());
  harness.stream.offline = false;
  await harness.clock.pass(0);
  assert.equal(harness.outcome!.kind, "ended");
});

test("going offline is said, and following goes on in case the server is near", async () => {
  const harness = new Harness([new Answer().write(start + delta(2, "a")), "no connection", new Answer().write(delta(3, "b") + done(4)).end()]);
  await harness.clock.pass(0);
  harness.stream.offline = true;
  await harness.clock.pass(0);
  assert.deepEqual(harness.last, { phase: "waiting", reason: "offline", attempt: 1, silent: false, sent: true });
  await harness.clock.pass(3000);
  assert.equal(harness.text, "ab");
});

test("204 means the run is over, 404 that nobody knows it", async () => {
  const over = new Harness([new Response(null, { status: 204 })], { runId: "run_9" });
  const missing = new Harness([problem(404, "not_found")], { runId: "run_9" });
  await over.clock.pass(0);
  await missing.clock.pass(0);
  assert.deepEqual(over.requests.map(({ method, url, lastEventId }) => [method, url, lastEventId]), [["GET", "/runs/run_9/events", null]]);
  assert.equal(over.outcome!.kind, "over");
  assert.equal(missing.outcome!.kind, "missing");
});

test("a busy server is asked again when it says so", async () => {
  const harness = new Harness([problem(503, "full", { "Retry-After": "7" }), new Answer().write(start + done(2)).end()], { runId: "run_1" });
  await harness.clock.pass(6_900);
  assert.equal(harness.last.phase === "waiting" && harness.last.reason, "busy");
  assert.equal(harness.requests.length, 1);
  await harness.clock.pass(3_000);
  assert.equal(harness.outcome!.kind, "ended");
});

test("a question that gets no answer is sent again with the same id, a few times", async () => {
  const harness = new Harness(["no connection", new Response("Bad gateway", { status: 502 }), problem(503, "draining"), new Answer().write(start + done(2)).end()]);
  await harness.clock.pass(20_000);
  assert.equal(harness.requests.length, 4);
  assert.equal(new Set(harness.requests.map((request) => request.body)).size, 1);
  assert.equal(harness.outcome!.kind, "ended");

  const hopeless = new Harness([]);
  await hopeless.clock.pass(60_000);
  assert.equal(hopeless.requests.length, 5);
  assert.equal(hopeless.outcome!.kind, "unsent");
});

test("a question is not given up while the browser is offline", async () => {
  const harness = new Harness([], { offline: true });
  await harness.clock.pass(300_000);
  assert.equal(harness.outcome, null);
  harness.replies.push(new Answer().write(start + done(2)).end());
  harness.stream.offline = false;
  await harness.clock.pass(0);
  assert.equal(harness.outcome!.kind, "ended");
});

test("a refusal is final and carries the server's words", async () => {
  for (const [status, code] of [[409, "run_in_progress"], [422, "invalid"], [429, "too_many"], [503, "full"], [500, "internal_error"]] as const) {
    const harness = new Harness([problem(status, code)]);
    await harness.clock.pass(10_000);
    assert.equal(harness.requests.length, 1, code);
    assert.ok(harness.outcome?.kind === "refused" && harness.outcome.problem.message === `Because ${code}.`);
  }
});

test("a page in place of a stream is not taken for one, nor asked for without end", async () => {
  const page = (): Response => new Response("<html>", { headers: { "Content-Type": "text/html" } });
  const harness = new Harness([page(), page(), page(), page(), page(), page()], { runId: "run_1" });
  await harness.clock.pass(120_000);
  assert.equal(harness.outcome?.kind, "refused");
});

test("an event of an unknown kind is passed over and counts", async () => {
  const harness = new Harness([new Answer().write(start + frame(2, "citation", { url: "x" }) + delta(3, "a") + done(4)).end()]);
  await harness.clock.pass(0);
  assert.equal(harness.text, "a");
  assert.equal(harness.outcome!.kind, "ended");
});

test("closing ends everything at once", async () => {
  for (const reply of [new Answer().write(start), "no connection", "hangs"] as const) {
    const harness = new Harness([reply]);
    await harness.clock.pass(0);
    harness.stream.close();
    await harness.clock.pass(0);
    assert.equal(harness.outcome?.kind, "closed");
    await harness.clock.pass(100_000);
    assert.equal(harness.requests.length, 1);
  }
});

test("ids are UUIDs, without a secure context too", () => {
  const insecure = { getRandomValues: crypto.getRandomValues.bind(crypto) } as Pick<Crypto, "getRandomValues">;
  const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
  for (const id of [newId(), newId(insecure), newId(insecure)]) assert.match(id, uuid);
  assert.notEqual(newId(insecure), newId(insecure));
});
