import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../src/api.ts";
import { Branches } from "../src/branches.ts";
import { Conversation } from "../src/conversation.ts";
import { placeOf } from "../src/found.ts";
import { Kept } from "../src/kept.ts";
import { News } from "../src/news.ts";
import type { NewsItem } from "../src/news.ts";
import { Queue } from "../src/queue.ts";

const nowhere = { getItem: () => null, setItem: () => undefined, removeItem: () => undefined };
const turn = async (): Promise<void> => {
  for (let at = 0; at < 10; at++) await new Promise((resolve) => setImmediate(resolve));
};

/** Two replies to one question; answers are a status each, 0 for no connection. */
function harness(answers: number[]) {
  const sent: string[] = [];
  const pauses: number[] = [];
  const troubles: string[] = [];
  const fetch = async (_: string, init: RequestInit = {}): Promise<Response> => {
    sent.push((JSON.parse(init.body as string) as { current_leaf_id: string }).current_leaf_id);
    const status = answers.shift() ?? 200;
    if (status === 0) throw new TypeError("Failed to fetch");
    return new Response(JSON.stringify({ detail: "Because." }), { status, headers: { "Content-Type": "application/problem+json" } });
  };
  const clock = {
    setTimeout: (callback: () => void, delay: number): void => {
      pauses.push(delay);
      setImmediate(callback);
    },
    clearTimeout: () => undefined,
    random: () => 0,
  };
  const conversation = new Conversation(new Queue(new Kept("", () => nowhere), null));
  conversation.id = "c_1";
  const question = conversation.add("user", null, "Hi");
  const replies = ["m_1", "m_2", "m_3"].map((id) => Object.assign(conversation.add("assistant", question), { id }));
  const branches = new Branches(new Api("", fetch), clock, (words) => troubles.push(words));
  return { branches, conversation, replies, sent, pauses, troubles };
}

test("a choice that did not reach the server is told again, with growing pauses, and then it is said", async () => {
  const again = harness([0, 503]);
  again.branches.walk(again.conversation, again.replies[2]!, -1);
  for (let at = 0; at < 5; at++) await turn();
  assert.deepEqual(again.sent, ["m_2", "m_2", "m_2"]);
  assert.deepEqual(again.pauses, [1000, 2000]);
  assert.deepEqual(again.troubles, []);
  const never = harness([0, 0, 0, 0, 0]);
  never.branches.walk(never.conversation, never.replies[2]!, -1);
  for (let at = 0; at < 5; at++) await turn();
  assert.equal(never.sent.length, 4);
  assert.match(never.troubles.join(), /could not be kept.* No connection\.$/);
  const refused = harness([404]);
  refused.branches.walk(refused.conversation, refused.replies[2]!, -1);
  await turn();
  assert.equal(refused.sent.length, 1);
  assert.match(refused.troubles.join(), /Because\.$/);
});

test("a later choice takes the place of one that is still being told", async () => {
  const { branches, conversation, replies, sent, troubles } = harness([0, 200]);
  branches.walk(conversation, replies[2]!, -1);
  branches.walk(conversation, replies[1]!, -1);
  for (let at = 0; at < 5; at++) await turn();
  assert.deepEqual(sent, ["m_2", "m_1"]);
  assert.deepEqual(troubles, []);
});

test("a hit is found where what stands before it is the same", () => {
  const text = "A bird sings. The second bird flies.";
  assert.equal(placeOf(text, { before: "…A ", match: "bird" }), 2);
  assert.equal(placeOf(text, { before: "**The** second ", match: "bird" }), 25);
  assert.equal(placeOf(text, { before: "", match: "BIRD" }), 2);
  assert.equal(placeOf(text, { before: "Something else ", match: "bird" }), 2, "else the first");
  assert.equal(placeOf(text, { before: "", match: "fish" }), -1);
  assert.equal(placeOf(text, { before: "", match: "" }), -1);
});

test("news reach the other tabs of the same chat, and nothing else is taken for news", async () => {
  const heard: NewsItem[] = [];
  const own: NewsItem[] = [];
  const here = new News("/chat", (item) => own.push(item));
  const there = new News("/chat", (item) => heard.push(item));
  const elsewhere = new News("/other", (item) => heard.push(item));
  const until = async (count: number): Promise<void> => {
    const end = Date.now() + 2000;
    while (heard.length < count && Date.now() < end) await turn();
  };
  const raw = new BroadcastChannel("flaskchat/1 /chat/ news");
  for (const junk of [null, 5, "x", {}, { conversation: 5 }]) raw.postMessage(junk);
  here.tell("c_1", "run_1");
  here.tell("c_1");
  await until(2);
  assert.deepEqual(heard, [{ conversation: "c_1", run: "run_1" }, { conversation: "c_1", run: null }]);
  assert.deepEqual(own, []);
  there.close();
  here.tell("c_2");
  there.open();
  here.tell("c_3");
  await until(3);
  assert.equal(heard.at(-1)!.conversation, "c_3");
  for (const each of [here, there, elsewhere]) each.close();
  raw.close();
});
