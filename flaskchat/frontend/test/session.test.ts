import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../src/api.ts";
import { Conversation } from "../src/conversation.ts";
import { Kept } from "../src/kept.ts";
import { Queue } from "../src/queue.ts";
import type { Message } from "../src/protocol.ts";
import { Session } from "../src/session.ts";
import { endWords, runningWords } from "../src/words.ts";
import { Harness, data, json, memory, message, sse, start } from "./harness.ts";

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

test("that nobody is signed in is told once, until an answer shows that somebody is", async () => {
  const no = (): Response => json({ detail: "Sign in to use the chat.", code: "unauthorized" }, 401);
  const harness = new Harness({
    "POST /chat/conversation": [no(), no()],
    "GET /chat/conversations/c_1": [no(), json({ code: "unavailable" }, 503), json(data([])), no()],
  });
  const { session } = harness;
  for (const times of [1, 2]) {
    session.send("Hi");
    await harness.until(() => harness.returned.length === times);
    assert.deepEqual([session.signedOut, harness.signedOut], [true, 1]);
  }
  await session.open("c_1");
  assert.deepEqual([session.signedOut, harness.signedOut, session.failure], [true, 1, "Sign in to use the chat."]);
  await session.open("c_1");
  assert.equal(session.signedOut, true, "a server that fails knows of nobody");
  await session.open("c_1");
  assert.deepEqual([session.signedOut, session.problem, session.failure], [false, "", ""]);
  await session.open("c_1");
  assert.deepEqual([session.signedOut, harness.signedOut], [true, 2]);
});

test("that nobody is signed in is also heard from the tab that follows a reply for all", async () => {
  const asked: string[] = [];
  const reply = message("m_2", "m_1", "assistant", "", { status: "running", run_id: "run_1" });
  const stored = data([message("m_1", null, "user", "Hi"), reply], { running: [{ run_id: "run_1", message_id: "m_2" }] });
  const api = new Api("/chat", async () => json(stored));
  const follow = async (run: string): Promise<Response> => (asked.push(run), json({ detail: "Sign in.", code: "unauthorized" }, 401));
  const session = new Session(api, { onChange: () => undefined }, { kept: new Kept("/chat", memory()), follow });
  await session.open("c_1");
  for (let tries = 0; session.running && tries < 200; tries++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual([asked, session.signedOut], [["run_1"], true]);
});

test("a question that a proxy finds too long is taken back with words", async () => {
  const page = new Response("<html>413 Request Entity Too Large</html>", { status: 413, headers: { "Content-Type": "text/html" } });
  const harness = new Harness({ "POST /chat/conversation": [page] });
  harness.session.send("My long text");
  await harness.until(() => harness.session.running === null);
  assert.deepEqual(harness.returned, ["My long text"]);
  assert.equal(harness.session.problem, "This is longer than the server takes. Make it shorter.");
});

test("a question that is refused for now is kept with the server's words", async () => {
  const harness = new Harness({ "POST /chat/conversation": [json({ detail: "Too many at once.", code: "too_many" }, 429)] });
  harness.session.send("My long text");
  await harness.until(() => harness.session.running === null);
  assert.deepEqual(harness.returned, []);
  assert.equal(harness.branch.length, 0);
  assert.deepEqual(harness.queue.waiting.map(({ text, why }) => [text, why]), [["My long text", "Not sent: Too many at once."]]);
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

const cut = (): Message[] => [message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "One, ", { status: "stopped", run_id: "run_0" })];

test("going on that was not sent yet is taken back by Stop, and the reply is as it was", async () => {
  const harness = new Harness({ "GET /chat/conversations/c_1": [json(data(cut()))] });
  await harness.session.open("c_1");
  const reply = harness.branch.at(-1)!;
  harness.session.continue(reply);
  await harness.until(() => reply.connection?.phase === "waiting");
  harness.session.stop(reply);
  await harness.until(() => harness.session.running === null);
  assert.deepEqual([reply.status, reply.runId, reply.text, endWords(reply)], ["stopped", "run_0", "One, ", "Stopped."]);
  assert.ok(harness.calls.every((call) => !call.line.endsWith("/stop")));
});

test("going on that is refused leaves the reply as it was, with the server's words", async () => {
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(data(cut()))],
    "POST /chat/conversation": [json({ detail: "No more today.", code: "quota_exceeded" }, 422)],
  });
  await harness.session.open("c_1");
  harness.session.continue(harness.branch.at(-1)!);
  await harness.until(() => harness.session.running === null);
  assert.equal(endWords(harness.branch.at(-1)!), "Stopped.");
  assert.equal(harness.session.problem, "No more today.");
});

test("going on that another device has begun is followed", async () => {
  const now = [cut()[0]!, { ...cut()[1]!, status: "running" as const, run_id: "run_1" }];
  const harness = new Harness({
    "GET /chat/conversations/c_1": [json(data(cut())), json(data(now, { running: [{ run_id: "run_1", message_id: "m_2" }] }))],
    "POST /chat/conversation": [json({ detail: "A reply is being written.", code: "run_in_progress", run_id: "run_1" }, 409)],
    "GET /chat/runs/run_1/events": [sse([["start", start], ["delta", { text: "two" }], ["done", {}]])],
  });
  await harness.session.open("c_1");
  harness.session.continue(harness.branch.at(-1)!);
  await harness.until(() => harness.session.running === null && harness.branch.at(-1)!.text === "One, two");
  assert.equal(harness.branch.at(-1)!.status, "done");
});

test("a title that was given since is not taken back by the events of a reply that are read again", async () => {
  for (const [shown, after] of [["Mine", "Mine"], ["T", "Better"]] as const) {
    const stored = data([message("m_1", null, "user", "Hi"), message("m_2", "m_1", "assistant", "", { status: "running", run_id: "run_1" })], { title: shown, running: [{ run_id: "run_1", message_id: "m_2" }] });
    const harness = new Harness({
      "GET /chat/conversations/c_1": [json(stored)],
      "GET /chat/runs/run_1/events": [sse([["start", start], ["title", { title: "Better" }], ["done", {}]])],
    });
    await harness.session.open("c_1");
    await harness.until(() => harness.session.running === null);
    assert.equal(harness.session.conversation.title, after);
  }
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
