/**
 * Markdown tokens as DOM nodes, each made by hand and changed in place. Knows no network and no state of the chat.
 *
 * Deliberate choices:
 *
 *  1. No markup is ever parsed: raw HTML is shown as the text it is, so what a model says can become neither script nor
 *     form, and the page runs under `require-trusted-types-for 'script'`.
 *  2. Nothing is loaded for a model: an image is a link that names its host. (A remote image carries data out.)
 *  3. Links go to http, https and mailto, and only where the address says so itself: no relative address, which would
 *     be one of the host application's own.
 *  4. One token is one node, so that a growing paragraph, list, table or code block keeps the nodes it has, and with
 *     them the reader's selection.
 *  5. What is nested deeper than anybody would read is shown as text: a browser lays nested boxes out by calling itself.
 */

import type { Token, Tokens } from "marked";
import { CodeBlock } from "./code.ts";
import { decodeEntities } from "./entities.ts";
import { image, linkElement, unmask } from "./links.ts";
import { isShown } from "./markdown.ts";
import type { MathToken } from "./tex.ts";

const DEEPEST = 40;
/** Characters of a table's cell that has more than a few words. */
const LONG = 24;
/** Top-level blocks in one box: laying out what grew passes over its box's blocks, and over the other boxes as a whole. */
const PAGE = 40;

interface Shown {
  key: string;
  node: ChildNode;
  /** Take on a later state of the same block; false if that needs another node. */
  grow?: (token: Token) => boolean;
  /** It is final. */
  settle?: () => void;
}

/** The blocks inside one element. */
export class Blocks {
  readonly #parent: Element;
  readonly #depth: number;
  readonly #shown: Shown[] = [];
  readonly #pages: HTMLElement[] = [];
  #far = 0;

  constructor(parent: Element, depth = 0) {
    this.#parent = parent;
    this.#depth = depth;
  }

  /** Show `tokens` in place of all blocks from the one numbered `start` on. */
  update(tokens: Token[], start = 0): void {
    let at = start;
    for (const token of tokens.filter(isShown)) {
      const key = keyOf(token);
      const old = this.#shown[at];
      if (old?.key !== key) {
        if (old?.grow?.(token)) {
          old.key = key;
        } else {
          const fresh = this.#block(token);
          if (old) old.node.replaceWith(fresh.node);
          else this.#place(at).append(fresh.node);
          this.#shown[at] = { ...fresh, key };
        }
      }
      at += 1;
    }
    for (const surplus of this.#shown.splice(at)) surplus.node.remove();
    for (const surplus of this.#pages.splice(Math.ceil(at / PAGE))) surplus.remove();
    this.#far = Math.min(this.#far, this.#pages.length);
  }

  get length(): number {
    return this.#shown.length;
  }

  element(at: number): HTMLElement {
    return this.#shown[at]!.node as HTMLElement;
  }

  /** Blocks before this number are far from the end: they are laid out only while they are near what is seen. */
  far(before: number): void {
    for (; this.#far < Math.floor(before / PAGE); this.#far++) this.#pages[this.#far]?.classList.add("far");
  }

  /** Show `token` in place of the settled block numbered `at`. */
  replace(at: number, token: Token): void {
    const old = this.#shown[at];
    if (!old) return;
    const fresh = this.#block(token);
    old.node.replaceWith(fresh.node);
    this.#shown[at] = { ...fresh, key: keyOf(token) };
    fresh.settle?.();
  }

  /** The box for the block numbered `at`. */
  #place(at: number): Element {
    if (this.#depth > 0) return this.#parent;
    const page = Math.floor(at / PAGE);
    let box = this.#pages[page];
    if (!box) this.#parent.append((box = this.#pages[page] = create("div", "page")));
    return box;
  }

  #block(token: Token): Block {
    const fresh = block(token, this.#depth);
    // A list and what is in it read in one direction.
    if (this.#depth === 0) (fresh.node as HTMLElement).dir ||= "auto";
    return fresh;
  }

  /** The blocks from one number to before another are final. */
  settle(from = 0, to = this.#shown.length): void {
    for (const { settle } of this.#shown.slice(from, to)) settle?.();
  }
}

function keyOf(token: Token): string {
  return `${token.type}\0${"loose" in token ? token.loose : ""}\0${targets(token)}\0${token.raw}`;
}

/** Where the links in it lead: the same source reads differently once a name is defined. */
function targets(token: Token): string {
  // A table's cell has only a text.
  if (token.type === "code" || !(token.raw ?? (token as Tokens.Generic)["text"]).includes("[")) return "";
  const { href, tokens, items, header, rows } = token as Tokens.Generic;
  const inside = [tokens, items, header, ...(rows ?? [])].flatMap((each) => (Array.isArray(each) ? each.map(targets) : []));
  return `${href ?? ""} ${inside.join("")}`;
}

type Block = Omit<Shown, "key">;

function children(token: Token): Token[] {
  return (token as Tokens.Generic).tokens ?? [];
}

function isNested(token: Token): boolean {
  return (token as Tokens.Generic).tokens !== undefined;
}

function block(token: Token, depth: number): Block {
  if (depth > DEEPEST) return { node: textElement("p", "raw", token.raw) };
  switch (token.type) {
    case "paragraph":
      return flow(create("p"), token, () => true);
    case "text":
      return flow(create("span"), token, () => true);
    case "heading": {
      const { depth } = token as Tokens.Heading;
      // The page has the h1, a conversation's title.
      return flow(create(`h${Math.min(depth + 1, 6)}`), token, (next) => (next as Tokens.Heading).depth === depth);
    }
    case "code":
      return code(token as Tokens.Code);
    case "blockquote":
      return nested(create("blockquote"), token, depth, children, () => true);
    case "list": {
      const list = token as Tokens.List;
      const node = create(list.ordered ? "ol" : "ul");
      if (list.ordered && list.start !== "" && list.start !== 1) node.setAttribute("start", String(list.start));
      const same = (next: Token): boolean => {
        const other = next as Tokens.List;
        return other.ordered === list.ordered && other.start === list.start;
      };
      return nested(node, token, depth, (next) => (next as Tokens.List).items, same);
    }
    case "list_item": {
      const item = token as Tokens.ListItem;
      const node = create("li", item.task ? "task" : "");
      return nested(node, token, depth, children, (next) => (next as Tokens.ListItem).task === item.task);
    }
    case "table":
      return table(token as Tokens.Table);
    case "hr":
      return { node: create("hr") };
    case "math":
      return { node: math(token as MathToken, "div") };
    case "checkbox":
      return { node: inline(token) };
    default:
      return { node: textElement("p", "raw", token.raw.replace(/\n+$/, "")) };
  }
}

/** A block with blocks inside. */
function nested(
  node: HTMLElement,
  token: Token,
  depth: number,
  inside: (token: Token) => Token[],
  same: (next: Token) => boolean,
): Block {
  const blocks = new Blocks(node, depth + 1);
  blocks.update(inside(token));
  const type = token.type;
  return {
    node,
    grow(next) {
      if (next.type !== type || !same(next)) return false;
      blocks.update(inside(next));
      return true;
    },
    settle: () => blocks.settle(),
  };
}

/** A block with running text inside. */
function flow(node: HTMLElement, token: Token, same: (next: Token) => boolean): Block {
  const inline = new Inline(node);
  inline.update(children(token));
  const type = token.type;
  return {
    node,
    grow(next) {
      if (next.type !== type || !same(next)) return false;
      inline.update(children(next));
      return true;
    },
  };
}

function code(token: Tokens.Code): Block {
  const code = new CodeBlock(token.lang ?? "", token.text);
  return {
    node: code.node,
    grow(next) {
      if (next.type !== "code" || ((next as Tokens.Code).lang ?? "") !== code.lang) return false;
      code.grow((next as Tokens.Code).text);
      return true;
    },
    settle: () => code.settle(),
  };
}

/** A formula: its source, until what typesets it is there, and where it is no formula. */
function math(token: MathToken, name: "div" | "span"): HTMLElement {
  const node = textElement(name, token.display ? "math display" : "math", token.raw.trim());
  node.dir = "ltr";
  if (token.display) node.tabIndex = 0; // Long ones scroll, by keyboard too.
  if (token.text.length > 80) node.classList.add("wide");
  import("./math.ts")
    .then(({ formula }) => node.replaceChildren(formula(token.text, token.display)))
    .catch(() => undefined);
  return node;
}

function table(token: Tokens.Table): Block {
  const node = create("div", "table");
  node.tabIndex = 0; // Wide ones scroll, by keyboard too.
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "Table");
  const element = create("table");
  const head = create("thead");
  const body = create("tbody");
  head.append(row(token.header));
  element.append(head, body);
  node.append(element);
  const heading = cells(token.header);
  const shown: string[] = [];
  const fill = (rows: Tokens.TableCell[][]): void => {
    rows.forEach((each, index) => {
      const key = cells(each);
      if (shown[index] === key) return;
      const old = body.children[index];
      if (old) old.replaceWith(row(each));
      else body.append(row(each));
      shown[index] = key;
    });
    for (const _ of shown.splice(rows.length)) body.lastElementChild?.remove();
  };
  fill(token.rows);
  return {
    node,
    grow(next) {
      if (next.type !== "table" || cells((next as Tokens.Table).header) !== heading) return false;
      fill((next as Tokens.Table).rows);
      return true;
    },
  };
}

function cells(row: Tokens.TableCell[]): string {
  return row.map((cell) => `${cell.align}\0${targets(cell as never)}\0${cell.text}`).join("\0");
}

function row(cells: Tokens.TableCell[]): HTMLElement {
  const node = create("tr");
  for (const cell of cells) {
    const each = create(cell.header ? "th" : "td", `${cell.align ?? ""}${cell.text.length > LONG ? " long" : ""}`.trim());
    if (cell.header) each.setAttribute("scope", "col");
    new Inline(each).update(cell.tokens);
    node.append(each);
  }
  return node;
}

/** The running text inside one element: one node for each token. */
class Inline {
  readonly #parent: Element;
  readonly #depth: number;
  readonly #nodes: ChildNode[] = [];
  #tokens: Token[] = [];

  constructor(parent: Element, depth = 0) {
    this.#parent = parent;
    this.#depth = depth;
  }

  update(tokens: Token[]): void {
    tokens.forEach((token, index) => {
      const old = this.#tokens[index];
      const node = this.#nodes[index];
      if (!old || !node) {
        this.#parent.append((this.#nodes[index] = inline(token, this.#depth)));
      } else if (old.type === "text" && token.type === "text" && !isNested(old) && !isNested(token)) {
        if (old.raw !== token.raw) growText(node as Text, inlineText(token));
      } else if (old.type !== token.type || old.raw !== token.raw || targets(old) !== targets(token)) {
        node.replaceWith((this.#nodes[index] = inline(token, this.#depth)));
      }
    });
    for (const surplus of this.#nodes.splice(tokens.length)) surplus.remove();
    this.#tokens = tokens;
  }
}

function inlineText(token: Token): string {
  return decodeEntities((token as Tokens.Text).text);
}

function inline(token: Token, depth = 0): ChildNode {
  if (depth > DEEPEST) return document.createTextNode(token.raw);
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return around(create(token.type), token, depth);
    case "codespan":
      return textElement("code", "", (token as Tokens.Codespan).text);
    case "br":
      return create("br");
    case "link":
      return link(token as Tokens.Link, depth);
    case "image":
      return image(token as Tokens.Image);
    case "math":
      return math(token as MathToken, "span");
    case "escape":
      return document.createTextNode((token as Tokens.Escape).text);
    case "checkbox":
      return textElement("span", "box", (token as Tokens.Checkbox).checked ? "☑ " : "☐ ");
    case "text":
      return isNested(token) ? around(create("span"), token, depth) : document.createTextNode(inlineText(token));
    default:
      return document.createTextNode(token.raw);
  }
}

function around(node: HTMLElement, token: Token, depth: number): HTMLElement {
  new Inline(node, depth + 1).update(children(token));
  return node;
}

function link(token: Tokens.Link, depth: number): HTMLElement {
  const node = linkElement(token);
  if (token.autolink) node.append(token.text);
  else around(node, token, depth);
  unmask(node);
  return node;
}

function growText(node: Text, text: string): void {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function create(name: string, className = ""): HTMLElement {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}

function textElement(name: string, className: string, text: string): HTMLElement {
  const node = create(name, className);
  node.append(text);
  return node;
}
