import assert from "node:assert/strict";
import { test } from "node:test";
import { Kept } from "../src/kept.ts";
import { leave, reloaded } from "../src/left.ts";
import { memory } from "./harness.ts";

/** The next page of the tab, and how its reader came to it. */
const next = (type: string, kept: Kept): string | null => {
  const real = performance.getEntriesByType;
  performance.getEntriesByType = () => [{ type }] as never;
  try {
    return reloaded(kept);
  } finally {
    performance.getEntriesByType = real;
  }
};

test("what was left is shown by the page's reload, and by that alone", () => {
  const kept = new Kept("/chat", memory());
  for (const type of ["navigate", "back_forward", "prerender"]) {
    leave(kept, "c_1");
    assert.equal(next(type, kept), null);
    assert.equal(next("reload", kept), null, `a reload after ${type}`);
  }
  leave(kept, "c_1");
  assert.equal(next("reload", kept), "c_1");
  assert.equal(next("reload", kept), null);
});

test("a new conversation that was left is a new one again, and so is what nobody here has written", () => {
  const kept = new Kept("/chat", memory());
  leave(kept, "c_1");
  leave(kept, null);
  assert.equal(next("reload", kept), null);
  kept.write("left", null, { id: "c_1" });
  assert.equal(next("reload", kept), null);
});
