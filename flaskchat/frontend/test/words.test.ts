import assert from "node:assert/strict";
import { test } from "node:test";
import { Entry } from "../src/conversation.ts";
import { facts } from "../src/details.ts";
import { plain } from "../src/search.ts";
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

test("what was found is shown without its Markdown, and with all that only looks like it", () => {
  const read = (written: string): string => {
    const [before = "", match = "", after = ""] = written.split("^");
    return plain({ message_id: "", before, match, after }).join("^");
  };
  for (const [written, expected] of [
    ["Use **`flask ^run^`** for *this*, ~~not~~ that.", "Use flask ^run^ for this, not that."],
    ["the **^big^ bad** wolf, ***very*** bad", "the ^big^ bad wolf, very bad"],
    ["The ^end^  said [the guide](https://example.org/a?b) ![a plan](plan.png)", "The ^end^  said the guide a plan"],
    ["[the ^guide^](guide.md)", "the ^guide^"],
    ["| ^a^ | b | |---|:-:| | 1 | - |", "| ^a^ | b | | 1 | - |"],
  ])
    assert.equal(read(written!), expected);
  for (const same of [
    "2**3 ^and^ 4**2, a * b * c",
    "C# ^and^ __init__ of snake_case",
    "x>y, #1, -- ^and^ ---",
    "f(*args, **^more^)[0](x)",
    "[it](https://^a^.org)",
    "if 5 > ^3^ then",
    "ls -l > ^out^.txt",
    "^a^ > b && c",
    "x = 1  # the ^count^",
    "foo(a)[i](b.^c^)",
    "handlers[name](^event^.data)",
    "*.js,*.^ts^",
  ])
    assert.equal(read(same), same);
});

test("the details of a reply without a word say that none came, and those of another how long it took, if that is known", () => {
  const failed = new Entry("assistant", null);
  failed.begin(true);
  failed.end({ event: "error", code: "model_refused", message: "The model's server refused the request.", retryable: false });
  assert.deepEqual(facts(failed), [["Text", "none came"]]);
  const elsewhere = new Entry("assistant", null, "Half a reply");
  elsewhere.begin();
  elsewhere.end({ event: "stopped" });
  assert.deepEqual(facts(elsewhere), [["Times", "not known: this browser did not see the reply from its beginning"]]);
  const seen = new Entry("assistant", null);
  seen.begin(true);
  seen.apply({ event: "delta", text: "Hello" });
  seen.apply({ event: "done", finish_reason: "stop" });
  assert.deepEqual(facts(seen).map(([name]) => name), ["First token after", "Written in"]);
});
