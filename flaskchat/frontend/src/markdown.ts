/**
 * Markdown that grows: which blocks can no longer change, and the tokens of the rest. Pure; no DOM.
 *
 * Deliberate choices:
 *
 *  1. A block is settled when another block begins after it, judged on whole lines only: half a line may still turn
 *     into the continuation of what stands before it. Blank lines begin nothing.
 *  2. Settled text is never parsed again, with one exception: a link definition that settles may concern blocks before
 *     it. Those that hold its name are parsed once more.
 *  3. Each block's inline text is parsed on its own: an unclosed raw `<a>` in one block does not reach into the next.
 *     So the tokens are the same wherever the text was cut.
 *  4. Nothing costs more the longer the text is. What is parsed at once is a window of the text. A block longer than
 *     any that is meant to be read is divided, by rules that do not depend on where the stream was cut: a list between
 *     items, a table between rows (each part has the head), running text after a sentence. Code in a fence may be of
 *     any length: its end is searched for in new lines only.
 *  5. Whatever the parser makes of hostile text (too deep, endless), the text is shown: as plain text.
 */

import type { Links, Token } from "marked";
import { define, division, lex, lexBlocks, names, tableHead } from "./blocks.ts";
import { Fence } from "./fence.ts";
import { undecided } from "./tex.ts";

export interface Parsed {
  /** The blocks shown so far are void: begin with `settled`. */
  restart: boolean;
  /** Blocks that were settled and read differently now, by their number among those that are shown. */
  changed: [at: number, token: Token][];
  /** Blocks that are final, in order, after those that were settled before. */
  settled: Token[];
  /** The blocks after them, as they look now. */
  tail: Token[];
  /** False: there was no time for all of the text; there is no tail yet. */
  complete: boolean;
}

const WINDOW = 8000;
/** A line of this many characters is not waited for. */
const LINE = 4000;

/** Whether a token is something to be seen: blank lines and definitions are not. */
export function isShown(token: Token): boolean {
  return token.type !== "space" && token.type !== "def";
}

export class Markdown {
  #text = "";
  #offset = 0;
  /** Up to where nothing more settles. */
  #judged = 0;
  #window = WINDOW;
  /** The head of the table whose further rows begin at the offset. */
  #head = "";
  #fence: Fence | null = null;
  #links: Links = Object.create(null);
  /** The source of each settled block that is shown. */
  #sources: string[] = [];
  /** Names in brackets that no definition has been seen for, and the settled blocks that hold them. */
  #unknown = new Map<string, number[]>();
  #fresh: string[] = [];

  /**
   * Take the whole text as it is now.
   *
   * @param final nothing will follow: everything settles.
   * @param more asked after each step whether there is time for another.
   */
  update(source: string, final = false, more: () => boolean = () => true): Parsed {
    let text = source;
    if (text.includes("\r")) {
      // A trailing CR may be half of a CRLF.
      text = (final ? text : text.replace(/\r$/, "")).replace(/\r\n?/g, "\n");
    }
    const restart = !text.startsWith(this.#text);
    if (restart) {
      this.#advance(0);
      this.#head = "";
      this.#links = Object.create(null);
      this.#sources = [];
      this.#unknown.clear();
      this.#fresh = [];
    }
    this.#text = text;
    const before = this.#sources.length;
    const settled: Token[] = [];
    let complete = true;
    for (let step = this.#step(final); step; step = this.#step(final)) {
      settled.push(...step);
      for (const token of step) if (isShown(token)) this.#keep(token.raw);
      if ((complete = more())) continue;
      break;
    }
    const changed = this.#relink(before, settled);
    return { restart, changed, settled, tail: complete ? this.#tail() : [], complete };
  }

  /** Settle what one window shows; null where nothing more can be settled now. */
  #step(final: boolean): Token[] | null {
    const text = this.#text;
    let end = final ? text.length : text.lastIndexOf("\n") + 1;
    if (text.length - Math.max(end, this.#offset) > LINE) end = text.length;
    if (this.#offset >= end || (!final && this.#judged === end)) return null;
    if (!this.#head) this.#fence ??= Fence.at(text, this.#offset, end, final);
    if (this.#fence) {
      const stop = this.#fence.close(text, end, final);
      if (stop >= 0) {
        const token = this.#fence.token(text, stop);
        this.#advance(stop);
        return [token];
      }
      this.#judged = end;
      return null;
    }
    for (; ; this.#window *= 2) {
      const tokens = this.#settle(end, final);
      if (tokens) return tokens;
      if (this.#offset + this.#window >= end) break;
    }
    this.#judged = end;
    return null;
  }

  #settle(end: number, final: boolean): Token[] | null {
    const text = this.#text;
    const offset = this.#offset;
    let stop = Math.min(end, offset + this.#window);
    if (stop < end) {
      const line = text.lastIndexOf("\n", stop - 1) + 1;
      if (line > offset) stop = line;
    }
    let last = stop === end && final;
    if (!last) {
      const open = undecided(text.slice(offset, stop));
      if (open === 0) return null;
      if (open > 0) stop = offset + open;
    }
    const head = this.#head;
    const { tokens, fill } = lexBlocks(head + text.slice(offset, stop));
    let count = last ? tokens.length : tokens.findLastIndex((token) => token.type !== "space");
    const long = tokens.findIndex((token, at) => this.#divide(token, at) > 0);
    // A fence is taken by itself, wherever its window ends.
    const fenced = tokens.findIndex((token, at) => at > 0 && token.type === "code" && !("codeBlockStyle" in token));
    for (const each of [long, fenced]) if (each >= 0 && each < count) count = each;
    if (long === 0) return this.#part(tokens[0]!);
    if (count <= 0) return null;
    const settled = tokens.slice(0, count);
    this.#advance(offset + settled.reduce((sum, token) => sum + token.raw.length, -head.length));
    if (last && count === tokens.length) this.#advance(end);
    this.#head = "";
    this.#fresh.push(...define(settled, this.#links));
    for (const token of settled) fill(token, this.#links);
    return settled;
  }

  #divide(token: Token, at: number): number {
    return isShown(token) ? division(token, token.raw, at === 0 ? this.#head.length : 0) : 0;
  }

  /** Settle the first part of a long block. */
  #part(token: Token): Token[] {
    const head = this.#head;
    const length = this.#divide(token, 0);
    const tokens = lex(token.raw.slice(0, length), this.#links);
    this.#fresh.push(...define(tokens, this.#links));
    this.#advance(this.#offset + length - head.length);
    this.#head = token.type === "table" && length < token.raw.length ? head || tableHead(token.raw) : "";
    return tokens;
  }

  #advance(offset: number): void {
    this.#offset = offset;
    this.#judged = 0;
    this.#window = WINDOW;
    this.#fence = null;
  }

  #tail(): Token[] {
    const text = this.#text;
    if (this.#fence) return [this.#fence.token(text, text.length)];
    return this.#offset < text.length ? lex(this.#head + text.slice(this.#offset), this.#links) : [];
  }

  #keep(raw: string): void {
    const at = this.#sources.push(raw) - 1;
    if (!raw.includes("[")) return;
    for (const name of new Set(names(raw))) {
      if (name in this.#links && !this.#fresh.includes(name)) continue;
      const blocks = this.#unknown.get(name);
      if (blocks) blocks.push(at);
      else this.#unknown.set(name, [at]);
    }
  }

  /** Parse the blocks again that were settled before a name in them was defined. */
  #relink(before: number, settled: Token[]): [number, Token][] {
    const concerned = new Set<number>();
    for (const name of this.#fresh.splice(0)) {
      for (const at of this.#unknown.get(name) ?? []) concerned.add(at);
      this.#unknown.delete(name);
    }
    const changed: [number, Token][] = [];
    const shown = concerned.size > 0 ? settled.filter(isShown) : [];
    for (const at of concerned) {
      const token = lex(this.#sources[at]!, this.#links).find(isShown);
      if (!token) continue;
      if (at < before) changed.push([at, token]);
      else settled[settled.indexOf(shown[at - before]!)] = token;
    }
    return changed;
  }
}
