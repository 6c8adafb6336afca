import assert from "node:assert/strict";
import { test } from "node:test";
import { cursorAfter, framesOf, Lines, SLOTS } from "../src/lines.ts";
import type { Note } from "../src/lines.ts";
import { RunStream } from "../src/stream.ts";
import type { Outcome } from "../src/stream.ts";
import { isMessage, Tabs } from "../src/tabs.ts";

const frame = (seq: number, event: string, body: object): string => `id: ${seq}\nevent: ${event}\ndata: ${JSON.stringify(body)}\n\n`;
const HEADERS = { "Content-Type": "text/event-stream; charset=utf-8", "Flaskchat-Run-Id": "run_1" };

/** A server whose runs grow when a test says so; it counts its connections. */
class Server {
  readonly logs = new Map<string, string[]>();
  readonly open = new Set<{ run: string; send: (text: string) => void; end: () => void }>();
  readonly requests: string[] = [];
  most = 0;
  refuse: number | null = null;

  readonly fetch = async (url: string, init: RequestInit = {}): Promise<Response> => {
    const run = url.split("/")[2]!;
    const after = Number((init.headers as Record<string, string>)["Last-Event-ID"] ?? 0);
    this.requests.push(`${run} ${after}`);
    const log = this.logs.get(run);
    if (this.refuse !== null || !log) return new Response("{}", { status: this.refuse ?? 404, headers: { "Content-Type": "application/problem+json" } });
    let connection!: { run: string; send: (text: string) => void; end: () => void };
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        const close = (): void => void this.open.delete(connection);
        connection = {
          run,
          send: (text) => controller.enqueue(new TextEncoder().encode(text)),
          end: () => (close(), controller.close()),
        };
        init.signal?.addEventListener("abort", () => {
          if (this.open.delete(connection)) controller.error(new DOMException("aborted", "AbortError"));
        });
        for (const text of log.slice(after)) connection.send(text);
      },
    });
    this.open.add(connection);
    this.most = Math.max(this.most, this.open.size);
    return new Response(body, { headers: HEADERS });
  };

  /** One more event of a run. */
  grow(run: string, event: string, body: object): void {
    const log = this.logs.get(run) ?? [];
    this.logs.set(run, log);
    const text = frame(log.length + 1, event, body);
    log.push(text);
    for (const connection of this.open) if (connection.run === run) connection.send(text);
  }

  begin(run: string): void {
    this.grow(run, "start", { run_id: run, conversation_id: "c", message_id: "m", user_message_id: "u", model: "x", title: "" });
  }
}

interface Waiting {
  name: string;
  grant: () => void;
  lost: (error: Error) => void;
  held: boolean;
}

/** A browser's locks and channels, for all of its tabs. */
class Browser {
  #queue: Waiting[] = [];
  #channels = new Set<{ name: string; port: BroadcastChannel }>();

  readonly locks = {
    request: (name: string, options: { steal?: boolean; signal?: AbortSignal }, callback: () => unknown): Promise<unknown> =>
      new Promise((resolve, reject) => {
        const entry = {
          name,
          held: false,
          lost: reject,
          grant: () => {
            entry.held = true;
            void Promise.resolve(callback()).then((value) => {
              this.#leave(entry);
              resolve(value);
            });
          },
        };
        options.signal?.addEventListener("abort", () => {
          if (entry.held) return;
          this.#leave(entry);
          reject(new DOMException("withdrawn", "AbortError"));
        });
        if (options.steal) {
          const holder = this.#queue.find((each) => each.held);
          if (holder) {
            this.#queue.splice(this.#queue.indexOf(holder), 1);
            holder.lost(new DOMException("stolen", "AbortError"));
          }
          this.#queue.unshift(entry);
        } else {
          this.#queue.push(entry);
        }
        queueMicrotask(() => this.#next());
      }),
  };

  #leave(entry: Waiting): void {
    const at = this.#queue.indexOf(entry);
    if (at >= 0) this.#queue.splice(at, 1);
    this.#next();
  }

  #next(): void {
    const first = this.#queue[0];
    if (first && !first.held) first.grant();
  }

  channel(name: string, deaf: () => boolean = () => false): BroadcastChannel {
    const port = {
      onmessage: null as ((event: MessageEvent) => void) | null,
      postMessage: (message: unknown) => {
        if (deaf()) return;
        const copy = structuredClone(message);
        for (const other of [...this.#channels]) {
          if (other.port === (port as never) || other.name !== name) continue;
          setImmediate(() => this.#channels.has(other) && other.port.onmessage?.({ data: copy } as MessageEvent));
        }
      },
      close: () => void this.#channels.delete(entry),
    };
    const entry = { name, port: port as unknown as BroadcastChannel };
    this.#channels.add(entry);
    return entry.port;
  }
}

/** A tab that follows runs and notes what it reads. */
class Tab {
  readonly tabs: Tabs;
  readonly streams: RunStream[] = [];
  readonly seqs: number[] = [];
  text = "";
  outcome: Outcome | null = null;
  dead = false;

  constructor(browser: Browser, server: Server) {
    this.tabs = new Tabs({
      endpoint: "/chat",
      fetch: (url, init) => (this.dead ? new Promise<never>(() => undefined) : server.fetch(url, init)),
      eventsUrl: (run) => `/runs/${run}/events`,
      heartbeat: 15,
      locks: browser.locks as unknown as LockManager,
      channel: (name) => {
        return browser.channel(name, () => this.dead);
      },
    });
  }

  follow(run: string): this {
    const stream = new RunStream({
      fetch: () => Promise.reject(new Error("a request of its own")),
      runId: run,
      eventsUrl: (id) => `/runs/${id}/events`,
      follow: this.tabs.follow,
      onEvent: (event, seq) => {
        this.seqs.push(seq);
        if (event.event === "delta") this.text += event.text;
      },
      clock: { setTimeout: (callback, delay) => setTimeout(callback, Math.min(delay, delay > 10_000 ? delay : 5)), clearTimeout: (timer) => clearTimeout(timer as never), random: () => 0.5 },
    });
    this.streams.push(stream);
    void stream.run().then((outcome) => (this.outcome = outcome));
    return this;
  }

  close(): void {
    for (const stream of this.streams) stream.close();
    this.tabs.close();
  }
}

async function until(condition: () => boolean, what: string, milliseconds = 3000): Promise<void> {
  const end = Date.now() + milliseconds;
  while (!condition()) {
    assert.ok(Date.now() < end, what);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const dense = (tab: Tab, last: number): void => assert.deepEqual(tab.seqs, Array.from({ length: last }, (_, at) => at + 1));

test("ten tabs read one run over one connection, whenever they come", async () => {
  const [browser, server] = [new Browser(), new Server()];
  server.begin("run_1");
  const tabs: Tab[] = [];
  for (let at = 0; at < 10; at++) {
    tabs.push(new Tab(browser, server).follow("run_1"));
    server.grow("run_1", "delta", { text: `${at} ` });
    await until(() => tabs.every((tab) => tab.seqs.at(-1) === at + 2), `tab ${at} does not keep up`);
  }
  assert.equal(server.open.size, 1);
  assert.equal(tabs.filter((tab) => tab.tabs.leading).length, 1);
  server.grow("run_1", "done", { finish_reason: "stop" });
  await until(() => tabs.every((tab) => tab.outcome?.kind === "ended"), "not all end");
  for (const tab of tabs) {
    dense(tab, 12);
    assert.equal(tab.text, "0 1 2 3 4 5 6 7 8 9 ");
    tab.close();
  }
  await until(() => server.open.size === 0, "a connection is left");
});

test("a leader that leaves is followed by another, with nothing lost or doubled", async () => {
  const [browser, server] = [new Browser(), new Server()];
  server.begin("run_1");
  let tabs = Array.from({ length: 4 }, () => new Tab(browser, server).follow("run_1"));
  for (let at = 0; at < 3; at++) {
    server.grow("run_1", "delta", { text: "a" });
    await until(() => tabs.every((tab) => tab.seqs.at(-1) === server.logs.get("run_1")!.length), "not all keep up");
    const leader = tabs.find((tab) => tab.tabs.leading)!;
    tabs = tabs.filter((tab) => tab !== leader);
    leader.close();
    server.grow("run_1", "delta", { text: "b" });
    await until(() => tabs.every((tab) => tab.seqs.at(-1) === server.logs.get("run_1")!.length), "nobody takes over");
    assert.equal(server.open.size, 1);
  }
  dense(tabs[0]!, 7);
  assert.equal(tabs[0]!.text, "ababab");
  tabs[0]!.close();
});

test("the lock is taken from a leader that answers nobody", async () => {
  const [browser, server] = [new Browser(), new Server()];
  server.begin("run_1");
  const [first, second] = [new Tab(browser, server).follow("run_1"), new Tab(browser, server).follow("run_1")];
  await until(() => second!.seqs.length === 1, "the second tab reads");
  first!.dead = true;
  server.grow("run_1", "delta", { text: "x" });
  await until(() => second!.seqs.length === 2, "the second tab takes over", 9000);
  assert.ok(second!.tabs.leading);
  dense(second!, 2);
  first!.close();
  second!.close();
});

test("more runs than connections take turns, and each goes on from its last event", async () => {
  const [browser, server] = [new Browser(), new Server()];
  const names = Array.from({ length: 10 }, (_, at) => `run_${at}`);
  names.forEach((name) => server.begin(name));
  const tabs = names.map((name) => new Tab(browser, server).follow(name));
  await until(() => tabs.every((tab) => tab.seqs.length === 1), "all begin", 8000);
  for (const name of names) server.grow(name, "delta", { text: name });
  await until(() => tabs.every((tab) => tab.seqs.length === 2), "all go on", 8000);
  assert.ok(server.most <= SLOTS, `${server.most} connections`);
  assert.ok(server.requests.some((request) => request.endsWith(" 1")));
  for (const name of names) server.grow(name, "done", { finish_reason: "stop" });
  await until(() => tabs.every((tab) => tab.outcome?.kind === "ended"), "all end", 8000);
  tabs.forEach((tab, at) => {
    assert.equal(tab.text, names[at]);
    dense(tab, 3);
    tab.close();
  });
});

test("the plug that is pulled in one tab breaks the connection of all, and all resume", async () => {
  const [browser, server] = [new Browser(), new Server()];
  server.begin("run_1");
  const tabs = [new Tab(browser, server).follow("run_1"), new Tab(browser, server).follow("run_1")];
  await until(() => tabs.every((tab) => tab.seqs.length === 1), "both read");
  const before = server.requests.length;
  const listens = tabs.find((tab) => !tab.tabs.leading)!;
  assert.equal(listens.streams[0]!.plug(), true);
  await until(() => server.requests.length > before, "the connection was not cut");
  server.grow("run_1", "done", { finish_reason: "stop" });
  await until(() => tabs.every((tab) => tab.outcome?.kind === "ended"), "both end");
  for (const tab of tabs) {
    dense(tab, 2);
    tab.close();
  }
});

test("what the server refuses is refused in each tab", async () => {
  const [browser, server] = [new Browser(), new Server()];
  const tabs = [new Tab(browser, server).follow("run_gone"), new Tab(browser, server).follow("run_gone")];
  await until(() => tabs.every((tab) => tab.outcome?.kind === "missing"), "a run that nobody knows");
  tabs.forEach((tab) => tab.close());
});

test("an idle tab holds nothing and a silent connection is not joined", async () => {
  const server = new Server();
  const notes: Note[] = [];
  server.begin("run_1");
  const lines = new Lines({ fetch: server.fetch, eventsUrl: (run) => `/runs/${run}/events`, send: (note) => notes.push(note), heartbeat: -5 });
  lines.want("a", "run_1", 0);
  await until(() => notes.some((note) => note.kind === "data"), "it reads");
  await new Promise((resolve) => setTimeout(resolve, 5));
  lines.want("b", "run_1", 1);
  await until(() => server.requests.length === 2, "a new connection in place of the silent one");
  lines.drop("a", "run_1");
  assert.equal(server.open.size, 1);
  lines.drop("b", "run_1");
  assert.equal(server.open.size, 0);
  assert.deepEqual(lines.runs, []);
  lines.close();
});

test("bytes cut anywhere become whole frames, heartbeats among them", () => {
  const text = `retry: 2000\n${frame(1, "start", {})}: hb\n${frame(2, "delta", { text: "é\n\n: x" })}: hb\n: hb\nevent: reset\ndata: {"seq":9,"text":""}\n\n`;
  for (let cut = 0; cut <= text.length; cut++) {
    const first = framesOf(text.slice(0, cut));
    const second = framesOf(first.rest + text.slice(cut));
    const all = [...first.frames, ...second.frames];
    assert.equal(all.map(([, each]) => each).join("") + second.rest, text);
    assert.deepEqual(all.map(([seq]) => seq), [1, 0, 2, 0, 0, 0]);
    assert.equal(all.reduce((after, each) => cursorAfter(each, after), 0), 9);
  }
});

test("a text with the separators of Unicode says nothing about a frame's fields", () => {
  for (const text of ["a\u2028b", "\u2028id: 99\u2028", "\u2029event: reset\u2029data: {}", "\u0085"]) {
    const reset = `event: reset\ndata: ${JSON.stringify({ seq: 5, text })}\n\n`;
    const { frames, rest } = framesOf(`${reset}${frame(6, "delta", { text })}`);
    assert.deepEqual([frames.map(([seq]) => seq), rest], [[0, 6], ""]);
    assert.equal(cursorAfter(frames[0]!, 3), 5);
    assert.equal(cursorAfter(frames[1]!, 5), 6);
  }
});

test("nothing but a message is taken for one", () => {
  for (const each of [{ kind: "lead" }, { kind: "here", runs: [] }, { kind: "want", from: "a", run: "b", after: 0 }, { kind: "data", run: "a", frames: [[1, "x"]] }]) {
    assert.ok(isMessage(each), JSON.stringify(each));
  }
  const wrong = [null, 1, "lead", {}, { kind: "constructor" }, { kind: "want", from: "a", run: "b", after: -1 }, { kind: "data", run: "a", frames: [["1", "x"]] }, { kind: "data", run: 1, frames: [] }];
  for (const each of wrong) assert.ok(!isMessage(each), JSON.stringify(each));
});
