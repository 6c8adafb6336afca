import assert from "node:assert/strict";
import { test } from "node:test";
import { lex } from "../src/blocks.ts";
import type { Token, Tokens } from "marked";

/** The formulas of a text, as the source between their marks. */
function formulas(text: string): string[] {
  const found: string[] = [];
  const walk = (token: Token): void => {
    if (token.type === "math") found.push((token as Tokens.Generic)["text"] as string);
    const { tokens, items, header, rows } = token as Tokens.Generic;
    for (const each of [tokens, items, header, ...(rows ?? [])]) if (Array.isArray(each)) each.forEach(walk);
  };
  lex(text, {}).forEach(walk);
  return found;
}

test("formulas are found in each of the four notations", () => {
  assert.deepEqual(formulas("$x$, $$y$$, \\(z\\) and \\[a = b\\]"), ["x", "y", "z", "a = b"]);
  assert.deepEqual(formulas("$$\nx\n$$\n\n\\[\ny\n\\]\n"), ["x", "y"]);
  assert.deepEqual(formulas("text\n$$\nx\n+ y\n- z\n$$\nmore"), ["x\n+ y\n- z"]);
  assert.deepEqual(formulas("- item\n  $$\n  x\n  $$\n\n> \\[\n> y = 1\n> \\]\n"), ["x", "y = 1"]);
  assert.deepEqual(formulas("| $a$ | \\(b\\) |\n|---|---|\n| $c_1$ | d |"), ["a", "b", "c_1"]);
  assert.deepEqual(formulas("**$x$** and *\\(y_1\\)* and ($z$), $w$."), ["x", "y_1", "z", "w"]);
});

test("money is no formula", () => {
  for (const text of [
    "costs $5 and $6", "from $5-$6", "US$5 and A$6", "$5 or 6$ in all", "$20 million for the $30 million", "$HOME and $PATH",
    "$HOME/$PATH", "it is 5$ or 6$", "$ 5 $", "$$", "$$$$", "\\$5 and \\$6", "a $5,000 car and a $6,000 car", "$1.50/$2",
    "`$x$`", "```\n$$\nx\n$$\n```", "    $x$", "[a](https://example.com/$b$c)", "$5 to 10$ more",
  ]) {
    assert.deepEqual(formulas(text), [], text);
  }
});

test("an escaped bracket is no formula", () => {
  for (const text of ["\\[see above\\]", "\\(see above\\)", "\\[1\\]", "\\[ \\]", "\\(\\)"]) assert.deepEqual(formulas(text), [], text);
});

test("a formula has no blank line and ends somewhere", () => {
  assert.deepEqual(formulas("$$\nx\n\ny\n$$"), []);
  assert.deepEqual(formulas("$x\ny$"), []);
  assert.deepEqual(formulas(`$${"x".repeat(10_000)}$`), []);
});

test("marks of emphasis inside a formula mean nothing", () => {
  assert.deepEqual(formulas("*a $x*y$ b* and \\(p*q\\) *c*"), ["x*y", "p*q"]);
  assert.deepEqual(formulas("$a_i$ and $b_i$"), ["a_i", "b_i"]);
});
