/** Code in a fence, while it grows: only new lines are searched for its end. Pure. */

import type { Tokens } from "marked";

const OPEN = /^( {0,3})(`{3,}(?=[^`\n]*\n)|~{3,})([^\n]*)\n/;
/** Characters of its first line. */
const LONGEST = 8000;

export class Fence {
  readonly #start: number;
  readonly #body: number;
  readonly #indent: number;
  readonly #lang: string;
  readonly #end: RegExp;
  /** Where the first line begins that was not searched yet. */
  #searched: number;

  /** The fence that begins at `offset`, if one does and its line is whole. */
  static at(text: string, offset: number, end: number, final: boolean): Fence | null {
    const first = text.charCodeAt(offset);
    if (first !== 32 && first !== 96 && first !== 126) return null;
    const line = text.slice(offset, Math.min(end, offset + LONGEST));
    const match = OPEN.exec(final && offset + line.length === text.length && !line.includes("\n") ? `${line}\n` : line);
    return match && new Fence(offset, match);
  }

  private constructor(offset: number, match: RegExpExecArray) {
    const [whole, indent, mark, lang] = match as unknown as [string, string, string, string];
    this.#start = offset;
    this.#body = this.#searched = offset + whole.length;
    this.#indent = indent.length;
    this.#lang = lang.trim().replace(/\\([!-/:-@[-`{-~])/g, "$1");
    this.#end = new RegExp(`^ {0,3}${mark}${mark[0]}* *$`, "gm");
  }

  /** Where the fence ends, its last line included; -1 while it is open. Lines after `end` are not whole. */
  close(text: string, end: number, final: boolean): number {
    const at = this.#find(text, end);
    if (at >= 0 && (final || text[at] === "\n")) return at;
    if (final) return text.length;
    this.#searched = Math.max(this.#searched, text.lastIndexOf("\n", end - 1) + 1);
    return -1;
  }

  /** What it holds, where it ends at `stop`. */
  token(text: string, stop: number): Tokens.Code {
    const body = Math.min(this.#body, stop);
    this.#end.lastIndex = this.#searched;
    const last = this.#find(text, stop);
    let code = text.slice(body, last < 0 ? stop : Math.max(body, text.lastIndexOf("\n", last - 1)));
    if (last < 0 && code.endsWith("\n")) code = code.slice(0, -1);
    if (this.#indent > 0) code = code.replace(new RegExp(`^ {1,${this.#indent}}`, "gm"), "");
    return { type: "code", raw: text.slice(this.#start, stop), lang: this.#lang, text: code };
  }

  /** The end of the line that closes it. */
  #find(text: string, stop: number): number {
    this.#end.lastIndex = this.#searched;
    const match = this.#end.exec(stop < text.length ? text.slice(0, stop) : text);
    return match ? match.index + match[0].length : -1;
  }
}
