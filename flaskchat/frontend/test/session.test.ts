import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../src/api.ts";
import { Conversation } from "../src/conversation.ts";
import type { Entry } from "../src/conversation.ts";
import type { Conversation as ConversationData, Message } from "../src/protocol.ts";
import { Drafts } from "../src/drafts.ts";
import { Kept } from "../src/kept.ts";
import type { Place } from "../src/kept.ts";
import { Queue } from "../src/queue.ts";
import { Session } from "../src/session.ts";
import { endWords, finishWords, runningWords, span, when } from "../src/words.ts";

const message = (id: string, parent: string | null, role: "user" | "assistant", text: string, more: Partial<Message> = {}): Message => ({
  id, parent_id: parent, role, text, status: "done", parts: [], ...more,
});
const data = (messages: Message[], more: Partial<ConversationData> = {}): ConversationData => ({
  id: "c_1", title: "T", model: "m", current_leaf_id: messages.at(-1)?.id ?? null, messages, running: [], ...more,
});
const frames = (list: [string, object][]): string =>
  list.map(([event, body], index) => `id: ${index + 1}\nevent: ${event}\ndata: ${JSON.stringify(body)}\n\n`).join("");
const start = { run_id: "run_1", conversation_id: "c_1", message_id: "m_2", user_message_id: "m_1", model: "m", title: "T" };
const sse = (list: [string, object][]): Response =>
  new Response(frames(list), { headers: { "Content-Type": "text/event-stream", "Flaskchat-Run-Id": "run_1" } });
const json = (body: object, status = 200): Response =>
  new Response(JSON.stringify(body), { status, headers: { "Content-Type": status < 400 ? "application/json" : "application/problem+json" } });

const memory = (): ((lasting: boolean) => Place) => {
  const map = new Map<string, string>();
  const place: Place = {
    getItem: (key) => map.get(key) ?? null,
    setItem: (key, value) => void map.set(key, value),
    removeItem: (key) => void map.delete(key),
  };
  return () => place;
};

/** A session over answers by "METHOD path"; each is used once, in order. */
class Harness {
  readonly calls: { line: string; body: Record<string, unknown> | null }[] = [];
  readonly returned: string[] = [];
  readonly announced: string[] = [];
  readonly ids: string[] = [];
  readonly session: Session;

  constructor(answers: Record<string, (Response | Promise<Response>)[]>, place = memory()) {
    const fetch = async (url: string, init: RequestInit = {}): Promise<Response> => {
      const line = `${init.method ?? "GET"} ${url}`;
      this.calls.push({ line, body: init.body ? (JSON.parse(init.body as string) as Record<string, unknown>) : null });
      const answer = answers[line]?.shift();
      if (!answer) throw new TypeError("Failed to fetch");
      return answer;
    };
    this.session = new Session(
      new Api("/chat/", fetch),
      {
        onChange: () => undefined,
        onReturn: (text) => this.returned.push(text),
        onAnnounce: (words) => this.announced.push(words),
        onConversation: (id) => this.ids.push(id),
      },
      { kept: new Kept("/chat", place), clock: { setTimeout: (callback) => setTimeout(callback, 0), clearTimeout: (timer) => clearTimeout(timer as never), random: () => 0 } },
    );
  }

  get queue(): Queue {
    return this.session.conversation.queue;
  }

  get branch(): Entry[] {
    return this.session.conversation.branch;
  }

  async until(condition: () => boolean): Promise<void> {
    const end = Date.now() + 2000;
    while (!condition()) {
      assert.ok(Date.now() < end, "it did not come to that");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

test("a question and its reply become a conversation", async () => {
  const harness = new Harness({ "POST /chat/conversation": [sse([["start", start], ["reasoning", { text: "hm" }], ["delta", { text: "Hello" }], ["done", { finish_reason: "stop" }]])] });
  harness.session.send("Hi");
  assert.deepEqual(harness.branch.map(({ role, text, status }) => [role, text, status]), [["user", "Hi", "done"], ["assistant", "", "running"]]);
  await harness.until(() => harness.session.running === null);
  assert.deepEqual(harness.branch.map(({ id, text, reasoning }) => [id, text, reasoning]), [["m_1", "Hi", ""], ["m_2", "Hello", "hm"]]);
  assert.deepEqual(harness.ids, ["c_1"]);
  assert.deepEqual(harness.announced, ["The reply has started.", "The reply is complete."]);
  assert.equal(harness.calls[0]!.body!["conversation_id"], undefined);
});

test("a question that is not valid is taken back with the server's words", async () => {
  const harness = new Harness({ "POST /chat/conversation": [json({ detail: "Not valid: message.text.", code: "invalid" }, 422)] });
  harness.session.send("My long text");
  await harness.until(() => harness.session.running === null);
  assert.deepEqual(harness.returned, ["My long text"]);
  assert.equal(harness.session.problem, "Not valid: message.text.");
  assert.equal(harness.branch.length, 0);
  assert.equal(harness.queue.waiting.length, 0);
});

test("a question that is refused for now is kept with the server's words", async () => {
  const harness = new Harness({ "POST /chat/conversation": [json({ detail: "Too many at once.", code: "too_many" }, 429)] });
  harness.session.send("My long text");
  await harness.until(() => harness.session.running === null);
  assert.deepEqual(harness.returned, []);
  assert.equal(harness.branch.length, 0);
  assert.deepEqual(harness.queue.waiting.map(({ text, why }) => [text, why]), [["My long text", "Not sent: Too many at once."]]);
});

test("a question that could not be sent is sent again with its id, and with another when it was changed", async () => {
  const harness = new Harness({});
  const { sending } = harness.session;
  const failed = (count: number): Promise<void> => harness.until(() => harness.calls.length === count && harness.queue.waiting[0]?.why !== undefined);
  harness.session.send("Hi");
  await failed(5);
  harness.session.model = "another";
  sending.retry(harness.queue.waiting[0]!);
  await failed(10);
  sending.edit(harness.queue.waiting[0]!, "Hi there");
  await failed(15);
  const bodies = harness.calls.map((call) => JSON.stringify(call.body));
  assert.equal(new Set(bodies.slice(0, 10)).size, 1);
  assert.equal(new Set(harness.calls.map((call) => (call.body!["message"] as { id: string }).id)).size, 2);
});

test("what a reload finds on its way is sent again as it was", async () => {
  const place = memory();
  const first = new Harness({}, place);
  first.session.send("Hi");
  await first.until(() => first.calls.length === 1);
  first.session.close();
  const second = new Harness({ "POST /chat/conversation": [sse([["start", start], ["delta", { text: "Hello" }], ["done", {}]])] }, place);
  await second.session.open(null);
  await second.until(() => second.branch.at(-1)?.text === "Hello" && second.session.running === null);
  assert.deepEqual(second.calls[0]!.body, first.calls[0]!.body);
  assert.equal(second.queue.items.length, 0);
  const third = new Harness({}, place);
  await third.session.open(null);
  assert.equal(third.calls.length, 0);
});

test("a message that was taken before the reload is not shown twice", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")]);
  const place = memory();
  const queue = new Queue(new Kept("/chat", place), "c_1");
  queue.add({ id: "x", text: "Hi", body: { action: "send", message: { id: "x", text: "Hi" }, conversation_id: "c_1", parent_id: null } });
  const harness = new Harness(
    {
      "GET /chat/conversations/c_1": [json(stored)],
      "POST /chat/conversation": [sse([["start", start], ["delta", { text: "Hello" }], ["done", {}]])],
    },
    place,
  );
  await harness.session.open("c_1");
  await harness.until(() => harness.queue.items.length === 0);
  assert.deepEqual(harness.branch.map((entry) => entry.text), ["Hi", "Hello"]);
  assert.equal(harness.session.conversation.entries.length, 2);
  assert.deepEqual(harness.announced, []);
});

test("messages that wait are sent one after the other when the reply has ended", async () => {
  let answer!: (response: Response) => void;
  const second = { ...start, run_id: "run_2", message_id: "m_4", user_message_id: "m_3" };
  const third = { ...start, run_id: "run_3", message_id: "m_6", user_message_id: "m_5" };
  const harness = new Harness({
    "POST /chat/conversation": [
      new Promise<Response>((resolve) => (answer = resolve)),
      sse([["start", second], ["done", {}]]),
      sse([["start", third], ["done", {}]]),
    ],
  });
  harness.session.send("One");
  harness.session.send("Two");
  harness.session.send("Three");
  assert.deepEqual(harness.queue.waiting.map((item) => item.text), ["Two", "Three"]);
  assert.equal(harness.branch.length, 2);
  answer(sse([["start", start], ["done", {}]]));
  await harness.until(() => harness.queue.items.length === 0 && harness.session.running === null);
  assert.deepEqual(harness.calls.map((call) => call.body!["parent_id"]), [undefined, "m_2", "m_4"]);
  assert.deepEqual(harness.branch.map((entry) => entry.id), ["m_1", "m_2", "m_3", "m_4", "m_5", "m_6"]);
});

test("what waits for a reply that fails is held until its writer decides", async () => {
  let answer!: (response: Response) => void;
  const harness = new Harness({ "POST /chat/conversation": [new Promise<Response>((resolve) => (answer = resolve))] });
  harness.session.send("One");
  harness.session.send("Two");
  answer(sse([["start", start], ["error", { code: "x", message: "It failed.", retryable: true }]]));
  await harness.until(() => harness.session.running === null);
  assert.equal(harness.session.sending.waits(harness.queue.waiting[0]!), "held");
  assert.equal(harness.calls.length, 1);
  harness.session.sending.retry(harness.queue.waiting[0]!);
  await harness.until(() => harness.calls.length > 1);
  assert.equal(harness.calls[1]!.body!["parent_id"], "m_2");
});

test("a message that is being changed is sent when its writer has done, and none before it", async () => {
  let answer!: (response: Response) => void;
  const second = { ...start, run_id: "run_2", message_id: "m_4", user_message_id: "m_3" };
  const third = { ...start, run_id: "run_3", message_id: "m_6", user_message_id: "m_5" };
  const harness = new Harness({
    "POST /chat/conversation": [
      new Promise<Response>((resolve) => (answer = resolve)),
      sse([["start", second], ["done", {}]]),
      sse([["start", third], ["done", {}]]),
    ],
  });
  const { sending } = harness.session;
  harness.session.send("One");
  harness.session.send("Two");
  const [two] = harness.queue.waiting;
  sending.hold(two!.id);
  answer(sse([["start", start], ["done", {}]]));
  await harness.until(() => harness.session.running === null);
  harness.session.send("Three");
  assert.deepEqual(harness.queue.waiting.map((item) => item.text), ["Two", "Three"]);
  sending.edit(two!, "Two, changed");
  sending.hold(null);
  await harness.until(() => harness.queue.items.length === 0 && harness.session.running === null);
  assert.deepEqual(harness.calls.map((call) => (call.body!["message"] as { text: string }).text), ["One", "Two, changed", "Three"]);
});

test("a message that another tab sends while it is being changed here becomes another one", async () => {
  let answer!: (response: Response) => void;
  const place = memory();
  const harness = new Harness({ "POST /chat/conversation": [new Promise<Response>((resolve) => (answer = resolve))] }, place);
  harness.session.send("One");
  answer(sse([["start", start]]));
  await harness.until(() => harness.session.conversation.id !== null);
  harness.session.send("Two");
  const [two] = harness.queue.waiting;
  harness.session.sending.hold(two!.id);
  new Queue(new Kept("/chat", place), "c_1").remove(two!.id);
  harness.session.sending.edit(two!, "Two, changed");
  harness.session.close();
  assert.deepEqual(harness.queue.items.map((item) => item.text), ["Two, changed"]);
  assert.notEqual(harness.queue.items[0]!.id, two!.id);
});

test("a message whose writer leaves the conversation while changing it is sent as it was", async () => {
  let answer!: (response: Response) => void;
  const second = { ...start, run_id: "run_2", message_id: "m_4", user_message_id: "m_3" };
  const harness = new Harness({
    "POST /chat/conversation": [new Promise<Response>((resolve) => (answer = resolve)), sse([["start", second], ["done", {}]])],
  });
  harness.session.send("One");
  harness.session.send("Two");
  harness.session.sending.hold(harness.queue.waiting[0]!.id);
  answer(sse([["start", start], ["done", {}]]));
  await harness.until(() => harness.session.running === null);
  const left = harness.session.conversation;
  await harness.session.open(null);
  await harness.until(() => left.queue.items.length === 0);
  assert.deepEqual(left.branch.map((entry) => entry.text), ["One", "", "Two", ""]);
  assert.equal(harness.branch.length, 0);
});

test("two new conversations are two, also while neither is taken by the server", async () => {
  const answers: ((response: Response) => void)[] = [];
  const post = (): Promise<Response> => new Promise((resolve) => answers.push(resolve));
  const place = memory();
  const harness = new Harness({ "POST /chat/conversation": [post(), post(), sse([["start", { ...start, run_id: "run_3", message_id: "m_6", user_message_id: "m_5" }], ["done", {}]])] }, place);
  harness.session.send("A");
  harness.session.send("A, more");
  const first = harness.session.conversation;
  await harness.session.open(null);
  assert.equal(harness.queue.items.length, 0);
  harness.session.send("B");
  const second = harness.session.conversation;
  await harness.until(() => harness.calls.length === 2);
  answers[0]!(sse([["start", start], ["done", {}]]));
  await harness.until(() => first.queue.items.length === 0);
  assert.deepEqual([first.id, first.branch.map((entry) => entry.text)], ["c_1", ["A", "", "A, more", ""]]);
  assert.deepEqual(new Queue(new Kept("/chat", place), null).items.map((item) => item.text), ["B"]);
  answers[1]!(sse([["start", { ...start, run_id: "run_2", conversation_id: "c_2" }], ["done", {}]]));
  await harness.until(() => second.queue.items.length === 0 && harness.session.running === null);
  assert.deepEqual([second.id, second.branch.map((entry) => entry.text)], ["c_2", ["B", ""]]);
  const sent = harness.calls.map(({ body }) => [(body!["message"] as { text: string }).text, body!["conversation_id"]]);
  assert.deepEqual(sent, [["A", undefined], ["B", undefined], ["A, more", "c_1"]]);
});

test("what a new conversation could not send is shown in the next one, with what was to follow it", async () => {
  let refuse!: (response: Response) => void;
  const harness = new Harness({ "POST /chat/conversation": [new Promise<Response>((resolve) => (refuse = resolve)), sse([["start", start], ["done", {}]]), sse([["start", { ...start, run_id: "run_2", message_id: "m_4", user_message_id: "m_3" }], ["done", {}]])] });
  harness.session.send("A");
  harness.session.send("B");
  await harness.session.open(null);
  assert.equal(harness.queue.items.length, 0);
  refuse(json({ detail: "Too many at once.", code: "too_many" }, 429));
  await harness.until(() => harness.queue.waiting.length === 2);
  assert.equal(harness.queue.waiting[0]!.why, "Not sent: Too many at once.");
  harness.session.sending.retry(harness.queue.waiting[0]!);
  await harness.until(() => harness.queue.items.length === 0 && harness.session.running === null);
  assert.deepEqual(harness.branch.map((entry) => entry.text), ["A", "", "B", ""]);
  assert.equal(harness.calls.length, 3);
});

test("a run that another tab began is followed, and the message waits for it", async () => {
  const before = [message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")];
  const now = [...before, message("m_3", "m_2", "user", "Mine"), message("m_4", "m_3", "assistant", "", { status: "running" })];
  const run = { ...start, run_id: "run_2", message_id: "m_4", user_message_id: "m_3" };
  const next = { ...start, run_id: "run_3", message_id: "m_6", user_message_id: "m_5" };
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(data(before)), json(data(now, { running: [{ run_id: "run_2", message_id: "m_4" }] }))],
    "POST /chat/conversation": [json({ detail: "Busy.", code: "run_in_progress", run_id: "run_2" }, 409), sse([["start", next], ["done", {}]])],
    "GET /chat/runs/run_2/events": [sse([["start", run], ["delta", { text: "Yours" }], ["done", {}]])],
  });
  await harness.session.open("c_1");
  harness.session.send("Theirs");
  await harness.until(() => harness.queue.items.length === 0 && harness.session.running === null);
  assert.deepEqual(harness.branch.map((entry) => entry.text), ["Hi", "Hello", "Mine", "Yours", "Theirs", ""]);
  const posts = harness.calls.filter((call) => call.line.startsWith("POST")).map((call) => call.body!);
  assert.deepEqual(posts.map((body) => body["parent_id"]), ["m_2", "m_4"]);
  assert.deepEqual(posts[0]!["message"], posts[1]!["message"]);
});

test("what another device asked is shown when the page is looked at again, and the next question follows it", async (t) => {
  const before = [message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")];
  const now = [...before, message("m_3", "m_2", "user", "Theirs"), message("m_4", "m_3", "assistant", "For them")];
  const next = { ...start, run_id: "run_3", message_id: "m_6", user_message_id: "m_5" };
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(data(before)), json(data(now)), json(data(now))],
    "POST /chat/conversation": [sse([["start", next], ["done", {}]])],
  });
  await harness.session.open("c_1");
  harness.session.wake();
  assert.equal(harness.calls.length, 1, "it has just been read");
  const real = Date.now;
  t.mock.method(Date, "now", () => real() + 60_000);
  for (let look = 0; look < 3; look++) harness.session.wake();
  await harness.until(() => harness.branch.length === 4);
  harness.session.send("Mine");
  await harness.until(() => harness.branch.at(-1)?.id === "m_6" && harness.session.running === null);
  assert.deepEqual(harness.branch.map((entry) => entry.text), ["Hi", "Hello", "Theirs", "For them", "Mine", ""]);
  assert.deepEqual(harness.calls.map((call) => call.line.slice(0, 4)), ["GET ", "GET ", "POST"]);
  assert.equal(harness.calls[2]!.body!["parent_id"], "m_4");
});

test("an edit of the first question says that nothing is before it, and arrows tell the server what is shown", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")]);
  const edited = { ...start, message_id: "m_4", user_message_id: "m_3" };
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(stored)],
    "POST /chat/conversation": [sse([["start", edited], ["delta", { text: "Ho" }], ["done", {}]])],
    "PATCH /chat/conversations/c_1": [json(stored), json(stored)],
  });
  await harness.session.open("c_1");
  const first = harness.branch[0]!;
  harness.session.send("Hi there", first.parent);
  await harness.until(() => harness.session.running === null && harness.branch.length === 2 && harness.branch[1]!.text === "Ho");
  assert.equal(harness.calls[1]!.body!["parent_id"], null);
  const second = harness.branch[0]!;
  assert.deepEqual(harness.session.conversation.siblings(first), [first, second]);
  assert.equal(harness.session.walk(second, 1), second);
  assert.equal(harness.session.walk(second, -1), first);
  await harness.until(() => harness.calls.length === 3);
  assert.deepEqual(harness.calls[2]!.body, { current_leaf_id: "m_2" });
});

test("a conversation that is opened goes on with the run it has, after the text from before it", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Before, ", { status: "running", run_id: "run_1" })], { running: [{ run_id: "run_1", message_id: "m_2" }] });
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(stored)],
    "GET /chat/runs/run_1/events": [sse([["start", start], ["delta", { text: "after" }], ["stopped", {}]])],
  });
  await harness.session.open("c_1");
  await harness.until(() => harness.session.running === null);
  assert.equal(harness.branch.at(-1)!.text, "Before, after");
  assert.equal(endWords(harness.branch.at(-1)!), "Stopped.");
});

test("a run that is over by then is read from the conversation", async () => {
  const messages = [message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "", { status: "running" })];
  const harness = new Harness({
    "GET /chat/conversations/c_1": [
      json(data(messages, { running: [{ run_id: "run_1", message_id: "m_2" }] })),
      json(data([messages[0]!, message("m_2", "m_1", "assistant", "The whole reply")])),
    ],
    "GET /chat/runs/run_1/events": [new Response(null, { status: 204 })],
  });
  await harness.session.open("c_1");
  await harness.until(() => harness.session.running === null);
  assert.equal(harness.branch.at(-1)!.text, "The whole reply");
});

test("Stop before the run has a name is sent as soon as it has one", async () => {
  let answer!: (response: Response) => void;
  const waiting = new Promise<Response>((resolve) => (answer = resolve));
  const harness = new Harness({
    "POST /chat/conversation": [waiting],
    "POST /chat/runs/run_1/stop": [json({ run_id: "run_1", state: "stopped", upstream_closed_ms: 12.4 })],
    "GET /chat/runs/run_1/events": [sse([["start", start], ["stopped", {}]])],
  });
  harness.session.send("Hi");
  harness.session.stop(harness.session.running!);
  assert.equal(runningWords(harness.session.running!), "Stopping…");
  answer(sse([["start", start]]));
  await harness.until(() => harness.session.running === null);
  await harness.until(() => harness.branch.at(-1)!.closedIn !== null);
  assert.equal(endWords(harness.branch.at(-1)!), "Stopped. The model's connection was closed in 12 ms.");
  assert.equal(harness.calls.filter((call) => call.line.endsWith("/stop")).length, 1);
});

test("trying again shows a sibling, and the old reply if that is refused", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Bad", { status: "error", error: { message: "It failed." } })]);
  const again = { ...start, message_id: "m_3" };
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(stored)],
    "POST /chat/conversation": [json({ detail: "No.", code: "x" }, 422), sse([["start", again], ["delta", { text: "Good" }], ["done", { finish_reason: "stop" }]])],
  });
  await harness.session.open("c_1");
  const old = harness.branch.at(-1)!;
  assert.equal(endWords(old), "It failed.");
  harness.session.regenerate(old);
  await harness.until(() => harness.session.running === null);
  assert.equal(harness.branch.at(-1), old);
  harness.session.regenerate(old);
  await harness.until(() => harness.branch.at(-1)!.text === "Good");
  assert.equal(harness.branch.length, 2);
  assert.equal(harness.calls.at(-1)!.body!["message_id"], "m_2");
});

test("a drop is announced once, as is its end, and what waits is said to wait", async () => {
  const answers = {
    "POST /chat/conversation": [sse([["start", start], ["delta", { text: "Hel" }]])],
    "GET /chat/runs/run_1/events": [] as Response[],
  };
  const harness = new Harness(answers);
  harness.session.send("Hi");
  await harness.until(() => harness.announced.length > 1);
  harness.session.send("And then?");
  await harness.until(() => harness.calls.length > 5);
  answers["GET /chat/runs/run_1/events"].push(sse([["start", start], ["delta", { text: "Hel" }], ["delta", { text: "lo" }], ["stopped", {}]]));
  await harness.until(() => harness.announced.includes("Stopped."));
  assert.deepEqual(harness.announced.slice(0, 5), [
    "The reply has started.",
    "Connection lost. Reconnecting, nothing is lost.",
    "Queued.",
    "Connected again.",
    "Stopped.",
  ]);
});

test("going on keeps the text and adds to it", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "One, ", { status: "stopped" })]);
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(stored)],
    "POST /chat/conversation": [sse([["start", start], ["delta", { text: "two" }], ["done", { finish_reason: "stop" }]])],
  });
  await harness.session.open("c_1");
  harness.session.continue(harness.branch.at(-1)!);
  await harness.until(() => harness.session.running === null);
  assert.equal(harness.branch.at(-1)!.text, "One, two");
  assert.deepEqual([harness.calls[1]!.body!["action"], harness.calls[1]!.body!["message_id"]], ["continue", "m_2"]);
});

test("an unknown conversation is said to be one", async () => {
  const harness = new Harness({ "GET /chat/conversations/c_x": [json({ detail: "There is no such conversation." }, 404)] });
  await harness.session.open("c_x");
  assert.match(harness.session.failure, /no such conversation/);
  assert.ok(harness.session.missing);
  harness.session.wake();
  assert.ok(!harness.session.loading, "another attempt would not find it either");
});

test("a conversation that could not be loaded is loaded when the network is back, or the page is looked at", async (t) => {
  const answers = { "GET /chat/conversations/c_1": [] as Response[] };
  const harness = new Harness(answers);
  await harness.session.open("c_1");
  assert.match(harness.session.failure, /no connection/);
  assert.ok(!harness.session.missing);
  answers["GET /chat/conversations/c_1"].push(json({ detail: "No server." }, 503), json(data([message("m_1", null, "user", "Hi")])));
  harness.session.offline = false;
  await harness.until(() => harness.calls.length === 2 && !harness.session.loading);
  assert.equal(harness.session.failure, "No server.");
  harness.session.wake();
  await harness.until(() => harness.branch.length === 1);
  assert.equal(harness.session.failure, "");
  const real = Date.now;
  t.mock.method(Date, "now", () => real() + 60_000);
  harness.session.wake();
  await harness.until(() => harness.calls.length === 4);
  await new Promise((resolve) => setTimeout(resolve, 1));
  answers["GET /chat/conversations/c_1"].push(json(data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")])));
  harness.session.offline = false;
  await harness.until(() => harness.branch.length === 2);
});

test("what was written in a conversation is there again for who signs in again, and is not sent before", async () => {
  const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "Hello")]);
  const place = memory();
  const kept = new Kept("/chat", place);
  kept.write("draft", "c_1", "A thought");
  const queue = new Queue(kept, "c_1");
  queue.add({ id: "x", text: "Not taken", why: "Not sent: no connection." });
  queue.add({ id: "y", text: "Behind it" });
  const missing = json({ detail: "There is no such conversation.", code: "not_found" }, 404);
  const harness = new Harness({ "GET /chat/conversations/c_1": [missing, json(stored)], "POST /chat/conversation": [sse([["start", { ...start, message_id: "m_4", user_message_id: "m_3" }], ["done", {}]])] }, place);
  await harness.session.open("c_1");
  harness.session.sending.withdraw(harness.queue.waiting[0]!);
  assert.deepEqual(harness.queue.waiting.map((item) => item.text), ["Behind it"]);
  await harness.session.open("c_1");
  await harness.until(() => harness.queue.items.length === 0 && harness.session.running === null);
  assert.equal(kept.read("draft", "c_1"), "A thought");
  assert.deepEqual(harness.calls.map((call) => call.line.split(" ")[0]), ["GET", "GET", "POST"]);
  assert.equal(harness.calls[2]!.body!["parent_id"], "m_2");
});

test("the branch that is shown ends at the leaf, and stays where the reader is", () => {
  const conversation = new Conversation(new Queue(new Kept("", memory()), null));
  const messages = [message("a", null, "user", "1"), message("b", "a", "assistant", "old"), message("c", "a", "assistant", "new"), message("d", "c", "user", "2")];
  const shown = (): (string | null)[] => conversation.branch.map((entry) => entry.id);
  conversation.read(data(messages));
  assert.deepEqual(shown(), ["a", "c", "d"]);
  conversation.read(data(messages, { current_leaf_id: "b" }));
  assert.deepEqual(shown(), ["a", "c", "d"]);
  conversation.show(conversation.find("b")!);
  assert.deepEqual(shown(), ["a", "b"]);
  conversation.show(conversation.find("c")!);
  assert.deepEqual(shown(), ["a", "c", "d"]);
  conversation.read(data([...messages, message("e", "d", "assistant", "3")]));
  assert.deepEqual(shown(), ["a", "c", "d", "e"]);
});

test("a draft is kept per conversation, and gone at once when it was sent", () => {
  const drafts = new Drafts(() => kept);
  const kept = new Kept("", memory());
  drafts.keep("c_1", "one");
  drafts.keep("c_2", "two");
  drafts.flush();
  assert.deepEqual([drafts.of("c_1"), drafts.of("c_2"), drafts.of(null)], ["one", "two", ""]);
  drafts.keep("c_1", "");
  assert.equal(kept.read("draft", "c_1"), null);
});

test("without storage, what is kept lasts as long as the page", () => {
  const kept = new Kept("", () => {
    throw new Error("forbidden");
  });
  kept.write("draft", "c_1", "text");
  assert.equal(kept.read("draft", "c_1"), "text");
  kept.write("draft", "c_1", null);
  assert.equal(kept.read("draft", "c_1"), null);
});

test("why a reply was cut short is said in words", () => {
  assert.equal(finishWords("stop"), "");
  assert.match(finishWords("length"), /longest length/);
  assert.match(finishWords("content_filter"), /content filter/);
  assert.equal(finishWords("pause_turn"), "The reply ended early: pause turn.");
  assert.deepEqual([40, 1234, 12_300, 83_000].map(span), ["40 ms", "1.2 s", "12 s", "83 s"]);
});

test("times are told in few words", () => {
  const now = Date.parse("2026-05-05T12:00:00");
  assert.equal(when(now / 1000 - 10, now), "just now");
  assert.equal(when(now / 1000 - 300, now), "5 min ago");
  assert.match(when("2024-01-31T10:00:00Z", now), /2024/);
  assert.equal(when("nonsense", now), "");
});
