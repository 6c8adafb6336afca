/**
 * Markdown that grows: which blocks can no longer change, and the tokens of the rest. Pure; no DOM.
 *
 * Deliberate choices:
 *
 *  1. A block is settled when another block begins after it, judged on whole lines only: half a line may still turn
 *     into the continuation of what stands before it. Blank lines begin nothing.
 *  2. Settled text is never parsed again, with one exception: a link definition that settles may concern any block
 *     before it, so a new one starts over, with the definition known.
 *  3. Each block's inline text is parsed on its own: an unclosed raw `<a>` in one block does not reach into the next.
 *     So the tokens are the same wherever the text was cut.
 *  4. Whatever the parser makes of hostile text (too deep, endless), the text is shown: as plain text.
 */

import { Lexer } from "marked";
import type { Links, Token, Tokens } from "marked";

export interface Parsed {
  /** The blocks shown so far are void: begin with `settled`. */
  restart: boolean;
  /** Blocks that are final, in order, after those that were settled before. */
  settled: Token[];
  /** The blocks after them, as they look now. */
  tail: Token[];
}

export class Markdown {
  #offset = 0;
  #judged = 0;
  #links: Links = {};
  #previous = "";

  /**
   * Take the whole text as it is now.
   *
   * @param final nothing will follow: everything settles.
   */
  update(source: string, final = false): Parsed {
    let text = source;
    if (text.includes("\r")) {
      // A trailing CR may be half of a CRLF.
      text = (final ? text : text.replace(/\r$/, "")).replace(/\r\n?/g, "\n");
    }
    let restart = false;
    if (!text.startsWith(this.#previous)) {
      restart = true;
      this.#offset = this.#judged = 0;
      this.#links = {};
    }
    this.#previous = text;

    let settled = this.#settle(text, final);
    if (this.#define(settled)) {
      restart = true;
      this.#offset = this.#judged = 0;
      settled = this.#settle(text, final);
      this.#define(settled);
    }
    const rest = text.slice(this.#offset);
    return { restart, settled, tail: rest ? lex(rest, this.#links) : [] };
  }

  #settle(text: string, final: boolean): Token[] {
    const end = final ? text.length : text.lastIndexOf("\n") + 1;
    if (end <= this.#judged) return [];
    this.#judged = end;
    const source = text.slice(this.#offset, end);
    const tokens = lex(source, this.#links);
    let count = tokens.length;
    if (!final) {
      count = tokens.findLastIndex((token) => token.type !== "space");
      if (count <= 0) return [];
    }
    const settled = tokens.slice(0, count);
    this.#offset += final ? source.length : settled.reduce((sum, token) => sum + token.raw.length, 0);
    return settled;
  }

  /** Note the definitions among settled blocks; whether one of them is new. The first of a name counts. */
  #define(tokens: Token[]): boolean {
    let fresh = false;
    for (const token of tokens as Tokens.Generic[]) {
      // Quotes and lists have blocks of their own, and their definitions count everywhere too.
      if (token.type === "blockquote" || token.type === "list_item") fresh = this.#define(token.tokens ?? []) || fresh;
      if (token.type === "list") fresh = this.#define(token["items"]) || fresh;
      if (token.type !== "def" || Object.hasOwn(this.#links, token["tag"])) continue;
      this.#links[token["tag"]] = { href: token["href"], title: token["title"] };
      fresh = true;
    }
    return fresh;
  }
}

/** The tokens of a text whose link definitions may stand elsewhere. */
function lex(text: string, links: Links): Token[] {
  try {
    const lexer = new Lexer({ gfm: true });
    Object.assign(lexer.tokens.links, links);
    lexer.blockTokens(text, lexer.tokens);
    for (const { src, tokens } of lexer.inlineQueue) {
      lexer.state.inLink = lexer.state.inRawBlock = false;
      lexer.inlineTokens(src, tokens);
    }
    return [...lexer.tokens];
  } catch {
    return [{ type: "plain", raw: text }];
  }
}
