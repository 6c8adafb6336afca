import assert from "node:assert/strict";
import { test } from "node:test";
import { Drafts } from "../src/drafts.ts";
import { Kept } from "../src/kept.ts";
import { Queue } from "../src/queue.ts";
import { Harness, data, json, memory, message, sse, start } from "./harness.ts";

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

test("a draft is kept per conversation, and gone at once when it was sent", () => {
  const drafts = new Drafts<string>(() => kept, "draft");
  const kept = new Kept("", memory());
  drafts.keep("c_1", "one");
  drafts.keep("c_2", "two");
  drafts.flush();
  assert.deepEqual([drafts.of("c_1"), drafts.of("c_2"), drafts.of(null)], ["one", "two", null]);
  drafts.keep("c_1", null);
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
