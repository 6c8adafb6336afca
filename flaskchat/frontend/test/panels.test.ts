import "./dom.ts";
import assert from "node:assert/strict";
import { test } from "node:test";
import { commandOf } from "../src/keys.ts";
import { matching } from "../src/models.ts";
import { place } from "../src/popup.ts";
import { marked } from "../src/search.ts";
import { TabTitle } from "../src/tab.ts";

function key(stroke: string, code = ""): KeyboardEvent {
  const keys = stroke.split("+");
  const name = keys.pop()!;
  return {
    key: name, code, isComposing: false, keyCode: 0,
    altKey: keys.includes("Alt"), ctrlKey: keys.includes("Ctrl"), metaKey: keys.includes("Meta"), shiftKey: keys.includes("Shift"),
    getModifierState: (modifier: string) => keys.includes(modifier),
  } as unknown as KeyboardEvent;
}

for (const [stroke, code, typing, mac, command] of [
  ["?", "", false, false, "keys"], // Shift is part of the sign on most keyboards, on others it is not
  ["?", "", true, false, null],
  ["/", "", false, false, "search"],
  ["/", "", true, false, null],
  ["Escape", "", true, false, "escape"],
  ["F2", "", true, false, "rename"],
  ["Shift+F2", "", false, false, null],
  ["Ctrl+k", "KeyK", true, false, "search"],
  ["Meta+k", "KeyK", true, true, "search"],
  ["Ctrl+k", "KeyK", true, true, null], // to the end of the line, on a Mac
  ["Ctrl+Shift+K", "KeyK", true, false, null],
  ["Ctrl+/", "Slash", true, false, "keys"],
  ["Alt+n", "KeyN", true, false, "new"],
  ["Alt+Shift+N", "KeyN", true, false, null],
  ["Alt+˜", "KeyN", true, true, null],
  ["Ctrl+Shift+N", "KeyN", true, true, "new"],
  ["Ctrl+Shift+N", "KeyN", true, false, null], // the browser's private window
  ["AltGraph+Ctrl+Alt+n", "KeyN", true, false, null],
  ["Alt+m", "KeyM", true, false, "write"],
  ["Alt+l", "KeyL", true, false, "list"],
  ["Alt+c", "KeyC", true, false, "copy"],
  ["Ctrl+c", "KeyC", true, false, null],
  ["n", "KeyN", false, false, null],
] as const) {
  test(`${stroke}${typing ? " while typing" : ""}${mac ? " on a Mac" : ""} is ${command ?? "no key of ours"}`, () => {
    assert.equal(commandOf(key(stroke, code), typing, mac), command);
  });
}

test("no key is taken from within a composition", () => {
  assert.equal(commandOf({ ...key("Escape"), isComposing: true } as KeyboardEvent, true), null);
});

test("the words that were looked for are marked in a title", () => {
  assert.deepEqual(marked("A bee, two BEES", "bee"), ["A ", "bee", ", two ", "BEE", "S"]);
  assert.deepEqual(marked("a+b (c)", "(c) a+"), ["", "a+", "b ", "(c)", ""]);
  assert.deepEqual(marked("Nothing", "  "), ["Nothing"]);
});

test("models are found by all words of a query, in label or id", () => {
  const models = [
    { id: "openai:gpt-5", label: "GPT-5", default: true },
    { id: "openai:gpt-5-mini", label: "GPT-5 mini", default: false },
    { id: "ollama:qwen", label: "Qwen", default: false },
  ];
  const found = (query: string) => matching(models, query).map((model) => model.id);
  assert.deepEqual(found(""), models.map((model) => model.id));
  assert.deepEqual(found("MINI gpt"), ["openai:gpt-5-mini"]);
  assert.deepEqual(found("openai"), ["openai:gpt-5", "openai:gpt-5-mini"]);
  assert.deepEqual(found("claude"), []);
});

test("a box stands below its button, above it where there is more room, and never outside", () => {
  const frame = { left: 100, top: 100, width: 400, height: 300 };
  const size = { width: 150, height: 120 };
  assert.deepEqual(place({ left: 120, top: 110, width: 30, height: 20 }, size, frame), { x: 20, y: 34 });
  assert.deepEqual(place({ left: 460, top: 110, width: 30, height: 20 }, size, frame), { x: 240, y: 34 });
  assert.deepEqual(place({ left: 120, top: 370, width: 30, height: 20 }, size, frame), { x: 20, y: 146 });
  const huge = place({ left: 120, top: 200, width: 30, height: 20 }, { width: 390, height: 290 }, frame);
  assert.deepEqual(huge, { x: 8, y: 8 });
});

test("the tab tells of a reply that ended while nobody looked, until somebody does", () => {
  const page = { title: "Chat", hidden: false };
  const real = globalThis.document;
  Object.assign(globalThis, { document: page });
  try {
    const tab = new TabTitle();
    tab.finished(true);
    assert.equal(page.title, "Chat", "a widget in a host's page leaves its title alone");
    tab.show("");
    assert.equal(page.title, "Chat");
    tab.show("Bees");
    assert.equal(page.title, "Bees · Chat");
    tab.finished(true);
    assert.equal(page.title, "Bees · Chat", "somebody is looking");
    page.hidden = true;
    tab.finished(true);
    assert.equal(page.title, "✓ Reply ready · Bees");
    tab.show("Bees and flowers");
    assert.equal(page.title, "✓ Reply ready · Bees and flowers");
    page.hidden = false;
    tab.seen();
    assert.equal(page.title, "Bees and flowers · Chat");
  } finally {
    Object.assign(globalThis, { document: real });
  }
});
