import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const folder = new URL("../src/", import.meta.url);
const sheets = readdirSync(folder).filter((name) => name.endsWith(".css"));

/** The selectors of a stylesheet, each with the rules around it. */
function* selectors(css: string): Generator<{ selector: string; around: string[] }> {
  const around: string[] = [];
  for (const [piece] of css.replace(/\/\*[^]*?\*\//g, "").matchAll(/[^{};]*\{|\}/g)) {
    if (piece === "}") around.pop();
    else {
      const selector = piece.slice(0, -1).trim();
      yield { selector, around: [...around] };
      around.push(selector);
    }
  }
}

test("what looks otherwise under a pointer does so only where one can hover", () => {
  const wrong: string[] = [];
  let right = 0;
  for (const name of sheets) {
    for (const { selector, around } of selectors(readFileSync(new URL(name, folder), "utf8"))) {
      if (!selector.includes(":hover")) continue;
      if (around.includes("@media (hover: hover)")) right += 1;
      else wrong.push(`${name}: ${selector}`);
    }
  }
  assert.deepEqual(wrong, []);
  assert.ok(right > 5, "hardly any rule was found");
});
