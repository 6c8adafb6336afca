import assert from "node:assert/strict";
import { test } from "node:test";
import { Api } from "../src/api.ts";
import { ConversationList } from "../src/list.ts";
import type { ConversationItem } from "../src/protocol.ts";

const item = (n: number, more: Partial<ConversationItem> = {}): ConversationItem => ({
  id: `c_${n}`, title: `T${n}`, model: "m", updated_at: `2026-11-01T00:00:${String(n).padStart(2, "0")}.000Z`, running_run_id: null, ...more,
});
const json = (items: ConversationItem[], next: string | null = null): Response =>
  new Response(JSON.stringify({ items, next_cursor: next }), { headers: { "Content-Type": "application/json" } });

/** A list over answers in their order; a null is a lost connection. */
function listOver(answers: (Response | Promise<Response> | null)[], hidden = false) {
  const asked: string[] = [];
  const titles: string[] = [];
  const fetch = async (url: string): Promise<Response> => {
    asked.push(url);
    const answer = answers.shift();
    if (!answer) throw new TypeError("Failed to fetch");
    return answer;
  };
  const api = new Api("", fetch);
  const list = new ConversationList(() => api, {
    onChange: () => undefined,
    onTitle: (id, title) => titles.push(`${id} ${title}`),
    hidden: () => hidden,
  });
  return { list, asked, titles, ids: () => list.items.map((each) => each.id) };
}

test("pages follow each other and nothing is listed twice", async () => {
  const { list, asked, ids } = listOver([json([item(9), item(8)], "k"), json([item(8), item(7)])]);
  await list.refresh();
  assert.deepEqual(ids(), ["c_9", "c_8"]);
  assert.equal(list.next, "k");
  await Promise.all([list.more(), list.more()]);
  assert.deepEqual(ids(), ["c_9", "c_8", "c_7"]);
  assert.equal(list.next, null);
  assert.deepEqual(asked, ["/conversations?limit=30", "/conversations?limit=30&cursor=k"]);
  await list.more();
  assert.equal(asked.length, 2, "there is nothing more to ask for");
});

test("a fresh first page keeps the older ones, loses what was deleted elsewhere, and moves what was written in", async () => {
  const { list, ids } = listOver([
    json([item(9), item(8)], "k"),
    json([item(7), item(6)], "l"),
    json([item(20), item(6, { updated_at: "2026-11-01T00:00:10.000Z" })], "m"),
  ]);
  await list.refresh();
  await list.more();
  await list.refresh();
  assert.deepEqual(ids(), ["c_20", "c_6", "c_9", "c_8", "c_7"], "8 and 9 are older than the last of the first page");
  assert.equal(list.next, "l", "the cursor after the oldest that is known stays");
});

test("what should be on the first page and is not has been deleted", async () => {
  const { list, ids } = listOver([json([item(9), item(8), item(7)], "k"), json([item(9), item(7)], "k")]);
  await list.refresh();
  await list.refresh();
  assert.deepEqual(ids(), ["c_9", "c_7"]);
});

test("the last of overlapping refreshes counts", async () => {
  let late = (_: Response): void => undefined;
  const { list, ids } = listOver([new Promise((resolve) => (late = resolve)), json([item(2)])]);
  const first = list.refresh();
  // The page's first request holds the others up until it is answered.
  const second = list.refresh();
  late(json([item(1)]));
  await Promise.all([first, second]);
  assert.deepEqual(ids(), ["c_2"]);
});

test("a lost connection is remembered until the next answer, and keeps what is shown", async () => {
  const { list, ids } = listOver([json([item(1)]), null, json([item(1)])]);
  await list.refresh();
  await list.refresh();
  assert.equal(list.failed, true);
  assert.deepEqual(ids(), ["c_1"]);
  await list.refresh();
  assert.equal(list.failed, false);
});

test("a deleted conversation does not come back with an answer that was on its way", async () => {
  const { list, ids } = listOver([json([item(2), item(1)]), json([item(2), item(1)]), json([item(2), item(1)])]);
  await list.refresh();
  list.drop("c_2");
  assert.deepEqual(ids(), ["c_1"]);
  await list.refresh();
  assert.deepEqual(ids(), ["c_1"]);
  list.restore("c_2");
  await list.refresh();
  assert.deepEqual(ids(), ["c_2", "c_1"]);
});

test("another title is told, the same is not", async () => {
  const { list, titles } = listOver([json([item(1)]), json([item(1)]), json([item(1, { title: "Better" })])]);
  await list.refresh();
  await list.refresh();
  await list.refresh();
  assert.deepEqual(titles, ["c_1 T1", "c_1 Better"]);
});

for (const [what, running, hidden, looks] of [
  ["looks again while something is written", "run_1", false, 2],
  ["rests when nothing is written", null, false, 1],
  ["rests while nobody looks", "run_1", true, 1],
] as const) {
  test(`the list ${what}`, async (context) => {
    context.mock.timers.enable({ apis: ["setTimeout"] });
    const { list, asked } = listOver([json([item(1, { running_run_id: running })]), json([item(1)])], hidden);
    await list.refresh();
    context.mock.timers.tick(10_000);
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    assert.equal(asked.length, looks);
    list.close();
  });
}
