/**
 * marked's lexer, set up for text that nobody vouches for: blocks first, their running text only where it is wanted;
 * with formulas; and with bounds on what hostile text can cost. Pure.
 */

import { Lexer } from "marked";
import type { Links, Token, Tokens } from "marked";
import { blockMath, inlineMath, maskMath, nextBlockMath } from "./tex.ts";

/** Quotes and lists inside each other on one line; deeper ones are text. marked calls itself for each. */
const DEEPEST = 20;
/** Runs of emphasis marks in one text that are looked at; each may cost a search of the whole text. */
const MARKS = 200;
const DEEP = new RegExp(`^((?:[ \\t]*(?:>|(?:[-+*]|\\d{1,9}[.)])(?=[ \\t]))){${DEEPEST}})([ \\t>+*.)\\d-]+)`, "gm");
/** A list's marker so far to the right that it would be as deep. */
const INDENTED = /^([ \t]{60,})([-+*]|\d{1,9}[.)])(?=[ \t])/gm;
/** What looks alike and means nothing. */
const HARMLESS: Record<string, string> = { ">": "›", "-": "‐", "+": "＋", "*": "∗", ".": "․", ")": "﹚" };

/** Characters of a block above which it is divided where that does no harm; HARD: anywhere. */
const SOFT: Record<string, number> = { list: 8000, table: 8000, blockquote: 8000, code: 16_000 };
const RUNNING = 4000;
const HARD = 32_000;

export interface Lexed {
  tokens: Token[];
  /** Parse the running text of a block, with the links known. */
  fill: (token: Token, links: Links) => void;
}

/** The blocks of a text. */
export function lexBlocks(text: string): Lexed {
  let whole = "";
  const math = (raw: string, before: string): Token | undefined => (/^[$\\]/.test(raw) ? (inlineMath(raw, before) ?? undefined) : undefined);
  const lexer = new Lexer({
    gfm: true,
    extensions: {
      renderers: {},
      childTokens: {},
      block: [(source: string) => blockMath(source) ?? undefined],
      startBlock: [nextBlockMath],
      inline: [(source: string, tokens: Token[]) => math(source, tokens.at(-1)?.raw.at(-1) ?? "")],
      startInline: [(source: string) => source.indexOf("$")],
    },
    hooks: {
      emStrongMask(masked: string): string {
        let runs = 0;
        const hidden = masked.length === whole.length ? maskMath(whole, masked) : masked;
        return hidden.replace(/[*_~]+/g, (run) => (++runs > MARKS ? "a".repeat(run.length) : run));
      },
    },
  } as never);
  try {
    lexer.blockTokens(harmless(text), lexer.tokens);
  } catch {
    return { tokens: [{ type: "plain", raw: text }], fill: () => undefined };
  }
  const running = new Map(lexer.inlineQueue.map(({ src, tokens }) => [tokens, src]));
  const fill = (token: Token): void => {
    const { tokens, items, header, rows } = token as Tokens.Generic;
    const source = tokens && running.get(tokens);
    if (source !== undefined) {
      whole = source;
      lexer.state.inLink = lexer.state.inRawBlock = false;
      try {
        lexer.inlineTokens(source, tokens);
      } catch {
        tokens!.splice(0, Infinity, { type: "text", raw: source, text: source });
      }
    } else {
      tokens?.forEach(fill);
    }
    for (const each of [items, header, ...(rows ?? [])]) if (Array.isArray(each)) each.forEach(fill);
  };
  return {
    tokens: [...lexer.tokens],
    fill(token, links) {
      lexer.tokens.links = links;
      fill(token);
    },
  };
}

/** The blocks of a text with all they hold. */
export function lex(text: string, links: Links): Token[] {
  const { tokens, fill } = lexBlocks(text);
  const known: Links = Object.assign(Object.create(null), links);
  define(tokens, known);
  for (const token of tokens) fill(token, known);
  return tokens;
}

/** Note the link definitions among `tokens`, and return the names that are new. The first of a name counts. */
export function define(tokens: Token[], links: Links): string[] {
  return (tokens as Tokens.Generic[]).flatMap((token) => {
    // Quotes and lists have blocks of their own, and their definitions count everywhere too.
    if (token.type === "blockquote" || token.type === "list_item") return define(token.tokens ?? [], links);
    if (token.type === "list") return define(token["items"], links);
    if (token.type !== "def" || Object.hasOwn(links, token["tag"])) return [];
    links[token["tag"]] = { href: token["href"], title: token["title"] };
    return [token["tag"] as string];
  });
}

/**
 * How much of a long block, whose source this is, can be a block of its own; 0 where it shall stay whole. What comes
 * after the part does not matter, so that growing text is divided as the whole is.
 *
 * @param head characters of `raw` that each part repeats
 */
export function division(token: Token, raw: string, head: number): number {
  const soft = SOFT[token.type] ?? RUNNING;
  if (raw.length <= soft + head) return 0;
  const most = soft + head;
  if (token.type === "list") {
    let at = 0;
    for (const { raw: item } of (token as Tokens.List).items) {
      if (at + item.length > most) break;
      at += item.length;
    }
    if (at > 0 && at < raw.length) return at;
  } else if (token.type === "table") {
    const at = raw.lastIndexOf("\n", most) + 1;
    if (at > Math.max(head, tableHead(raw).length)) return at;
  } else if (token.type === "code" || token.type === "blockquote") {
    const at = raw.lastIndexOf("\n", most) + 1;
    if (at > 0) return at;
  } else {
    return breakOf(raw.slice(0, most));
  }
  return raw.length > HARD ? raw.lastIndexOf("\n", HARD) + 1 || breakOf(raw.slice(0, HARD)) : 0;
}

/** The lines of a table that say what it is: names and alignment. */
export function tableHead(raw: string): string {
  return /^[^\n]*\n[^\n]*\n/.exec(raw)?.[0] ?? "";
}

/** Where to divide running text: after a line, else a sentence, else a word, else a character. */
function breakOf(text: string): number {
  const late = text.length / 4;
  const line = text.lastIndexOf("\n") + 1;
  if (line > late) return line;
  const tail = text.slice(late);
  const sentence = /^[^]*[.!?…。！？]["”’)\]*_]*(?=\s)/.exec(tail);
  if (sentence) return Math.floor(late) + sentence[0].length + 1;
  const word = text.lastIndexOf(" ") + 1;
  if (word > late) return word;
  return /[\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length;
}

/** Markers of quotes and lists beyond the deepest, made into characters as many that are none. */
function harmless(text: string): string {
  const marks = (_: string, head: string, rest: string): string => head + rest.replace(/[>+*.)-]/g, (mark) => HARMLESS[mark]!);
  return text.replace(DEEP, marks).replace(INDENTED, marks);
}

/** The names in brackets that a definition may make links of, as marked writes them. */
export function names(raw: string): string[] {
  return [...raw.matchAll(/\[((?:\\[^]|[^[\]\\])+)\]/g)].map((match) => match[1]!.replace(/\s+/g, " ").toLowerCase());
}
