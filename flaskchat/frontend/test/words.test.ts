import assert from "node:assert/strict";
import { test } from "node:test";
import { finishWords, span, when } from "../src/words.ts";

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
