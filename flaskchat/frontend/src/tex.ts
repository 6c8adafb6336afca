/**
 * Where a text holds mathematics: `$…$`, `$$…$$`, `\(…\)`, `\[…\]`. Pure.
 *
 * Deliberate choices:
 *
 *  1. A dollar is money unless the text says otherwise: what opens stands free on its left and tight on its right, what
 *     closes is tight on its left and not followed by a letter or digit. "costs $5 and $6" holds no formula.
 *  2. A formula has no blank line, as in TeX, and a longest length: so it is known early whether one that was opened is
 *     one, and a hostile text cannot make each `$` search the rest of it.
 */

import type { Tokens } from "marked";

/** Characters of a formula, its marks included. */
const LONGEST = 4000;
/** Three words of prose behind a number: "5 million for the …" is an amount. */
const AMOUNT = /^\d[\d.,]*\s*(?:[A-Za-z]{2,}|%)\s+[A-Za-z]{2,}|^\d[\d.,]*\s+(?:and|or|to|per|a|is|for)\s/;
const PROSE = /[A-Za-z]{2,}[\s,]+[A-Za-z]{2,}/;
const OPERATOR = /[\\^_=+<>/*|{}-]/;

export interface MathToken extends Tokens.Generic {
  type: "math";
  /** The source between the marks. */
  text: string;
  display: boolean;
}

/** The formula at the start of `source`, within a line. `before`: the character to its left, "" for none. */
export function inlineMath(source: string, before: string): MathToken | null {
  if (source.startsWith("$$")) {
    const end = find(source, "$$", 2);
    return end < 0 ? null : token(source, 2, end, true);
  }
  if (source.startsWith("$")) {
    if (/[\p{L}\p{N}\\$]/u.test(before) || !/^\$[^\s$]/.test(source)) return null;
    const line = source.slice(0, LONGEST).split("\n", 1)[0]!;
    const end = find(line, "$", 1);
    if (end < 0 || /\s/.test(line[end - 1]!) || /[\p{L}\p{N}$]/u.test(line[end + 1] ?? "")) return null;
    const text = line.slice(1, end);
    if (AMOUNT.test(text) || (PROSE.test(text) && !OPERATOR.test(text))) return null;
    return token(source, 1, end, false);
  }
  const open = source.slice(0, 2);
  if (open !== "\\(" && open !== "\\[") return null;
  const display = open === "\\[";
  const end = find(source, display ? "\\]" : "\\)", 2);
  if (end < 0) return null;
  const text = source.slice(2, end);
  // Both are also how Markdown writes a bracket that is no markup.
  if (!OPERATOR.test(text) && (display || PROSE.test(text))) return null;
  return token(source, 2, end, display);
}

/** The formula that begins with the line `source` begins with, and ends with a line. */
export function blockMath(source: string): MathToken | null {
  const open = /^ {0,3}(\$\$|\\\[)/.exec(source);
  if (!open) return null;
  const from = open[0].length;
  const end = find(source, closing(open[1]!), from);
  if (end < 0) return null;
  const line = /^[ \t]*(?:\n|$)/.exec(source.slice(end + 2, end + 200));
  if (!line) return null;
  const math = token(source, from, end, true);
  if (math && open[1] !== "$$" && !OPERATOR.test(math.text) && !source.slice(from, end).includes("\n")) return null;
  return math && { ...math, raw: source.slice(0, end + 2 + line[0].length) };
}

/** Where a formula of lines of its own may begin, in a paragraph; -1 for nowhere. */
export function nextBlockMath(source: string): number {
  for (const match of source.matchAll(/\n(?= {0,3}(?:\$\$|\\\[))/g)) {
    if (blockMath(source.slice(match.index + 1, match.index + 1 + LONGEST + 200))) return match.index + 1;
  }
  return -1;
}

/** Where the text begins of which a later line may still make a formula; -1 where all is decided. */
export function undecided(source: string): number {
  if (!source.includes("$$") && !source.includes("\\[")) return -1;
  const blank = [...source.slice(-LONGEST - 200).matchAll(/\n[ \t>]*\n/g)].at(-1);
  const start = blank ? Math.max(0, source.length - LONGEST - 200) + blank.index + blank[0].length : 0;
  const chunk = source.slice(start);
  const opening = /(?:^|\n)[ \t>]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)?(\$\$|\\\[)/g;
  for (let match = opening.exec(chunk); match; match = opening.exec(chunk)) {
    const from = match.index + match[0].length;
    const end = find(chunk, closing(match[1]!), from);
    if (end >= 0) opening.lastIndex = end + 2;
    else if (chunk.length - from < LONGEST) return start;
  }
  return -1;
}

/** The emphasis marks inside formulas, hidden from the search for emphasis: `masked` is as long as `source`. */
export function maskMath(source: string, masked: string): string {
  const opening = /\$|\\[([]/g;
  let result = "";
  let last = 0;
  for (let match = opening.exec(source); match; match = opening.exec(source)) {
    const at = match.index;
    // Code and links are masked already, by other characters.
    if (masked[at] !== "$" && masked[at] !== "+") continue;
    const math = inlineMath(source.slice(at, at + LONGEST), source[at - 1] ?? "");
    if (!math) continue;
    result += masked.slice(last, at) + "a".repeat(math.raw.length);
    last = opening.lastIndex = at + math.raw.length;
  }
  return result + masked.slice(last);
}

function closing(open: string): string {
  return open === "$$" ? "$$" : "\\]";
}

/** Where `mark` closes what was opened before `from`; -1 where it does not, or only after a blank line. */
function find(source: string, mark: string, from: number): number {
  const part = source.slice(from, from + LONGEST);
  const search = mark === "$" ? /\\[^]|\$|\n[ \t]*\n/g : mark === "$$" ? /\\[^]|\$\$|\n[ \t]*\n/g : /\\[^]|\n[ \t]*\n/g;
  for (let match = search.exec(part); match; match = search.exec(part)) {
    if (match[0] === mark) return from + match.index;
    if (match[0].startsWith("\n")) return -1;
  }
  return -1;
}

function token(source: string, from: number, end: number, display: boolean): MathToken | null {
  const text = source.slice(from, end).trim();
  return text ? { type: "math", raw: source.slice(0, end + from), text, display } : null;
}
