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
 */

import type { Token, Tokens } from "marked";
import { decodeEntities } from "./entities.ts";

interface Shown {
  key: string;
  node: ChildNode;
  /** Take on a later state of the same block; false if that needs another node. */
  grow?: (token: Token) => boolean;
}

/** The blocks inside one element. */
export class Blocks {
  readonly #parent: Element;
  readonly #shown: Shown[] = [];

  constructor(parent: Element) {
    this.#parent = parent;
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
          const fresh = block(token);
          if (old) old.node.replaceWith(fresh.node);
          else this.#parent.append(fresh.node);
          this.#shown[at] = { ...fresh, key };
        }
      }
      at += 1;
    }
    for (const surplus of this.#shown.splice(at)) surplus.node.remove();
  }
}

/** Whether a token has a node: blank lines and definitions have none. */
export function isShown(token: Token): boolean {
  return token.type !== "space" && token.type !== "def";
}

function keyOf(token: Token): string {
  return `${token.type}\0${"loose" in token ? token.loose : ""}\0${token.raw}`;
}

type Block = Omit<Shown, "key">;

function children(token: Token): Token[] {
  return (token as Tokens.Generic).tokens ?? [];
}

function isNested(token: Token): boolean {
  return (token as Tokens.Generic).tokens !== undefined;
}

function block(token: Token): Block {
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
      return nested(create("blockquote"), token, children, () => true);
    case "list": {
      const list = token as Tokens.List;
      const node = create(list.ordered ? "ol" : "ul");
      if (list.ordered && list.start !== "" && list.start !== 1) node.setAttribute("start", String(list.start));
      const same = (next: Token): boolean => {
        const other = next as Tokens.List;
        return other.ordered === list.ordered && other.start === list.start;
      };
      return nested(node, token, (next) => (next as Tokens.List).items, same);
    }
    case "list_item": {
      const item = token as Tokens.ListItem;
      const node = create("li", item.task ? "task" : "");
      return nested(node, token, children, (next) => (next as Tokens.ListItem).task === item.task);
    }
    case "table":
      return table(token as Tokens.Table);
    case "hr":
      return { node: create("hr") };
    case "checkbox":
      return { node: inline(token) };
    default:
      return { node: textElement("p", "raw", token.raw.replace(/\n+$/, "")) };
  }
}

/** A block with blocks inside. */
function nested(node: HTMLElement, token: Token, inside: (token: Token) => Token[], same: (next: Token) => boolean): Block {
  const blocks = new Blocks(node);
  blocks.update(inside(token));
  const type = token.type;
  return {
    node,
    grow(next) {
      if (next.type !== type || !same(next)) return false;
      blocks.update(inside(next));
      return true;
    },
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
  const language = (token.lang ?? "").split(/\s/, 1)[0]!;
  const node = create("div", "code");
  const head = create("div", "code-head");
  const copy = textElement("button", "copy", "Copy");
  copy.setAttribute("type", "button");
  head.append(textElement("span", "", language), copy);
  const text = document.createTextNode(token.text);
  const body = create("code");
  body.append(text);
  const pre = create("pre");
  pre.tabIndex = 0; // Long lines scroll, by keyboard too.
  pre.append(body);
  node.append(head, pre);
  return {
    node,
    grow(next) {
      if (next.type !== "code" || ((next as Tokens.Code).lang ?? "") !== (token.lang ?? "")) return false;
      growText(text, (next as Tokens.Code).text);
      return true;
    },
  };
}

function table(token: Tokens.Table): Block {
  const node = create("div", "table");
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
  return row.map((cell) => `${cell.align}\0${cell.text}`).join("\0");
}

function row(cells: Tokens.TableCell[]): HTMLElement {
  const node = create("tr");
  for (const cell of cells) {
    const each = create(cell.header ? "th" : "td", cell.align ?? "");
    if (cell.header) each.setAttribute("scope", "col");
    new Inline(each).update(cell.tokens);
    node.append(each);
  }
  return node;
}

/** The running text inside one element: one node for each token. */
class Inline {
  readonly #parent: Element;
  readonly #nodes: ChildNode[] = [];
  #tokens: Token[] = [];

  constructor(parent: Element) {
    this.#parent = parent;
  }

  update(tokens: Token[]): void {
    tokens.forEach((token, index) => {
      const old = this.#tokens[index];
      const node = this.#nodes[index];
      if (!old || !node) {
        this.#parent.append((this.#nodes[index] = inline(token)));
      } else if (old.type === "text" && token.type === "text" && !isNested(old) && !isNested(token)) {
        if (old.raw !== token.raw) growText(node as Text, inlineText(token));
      } else if (old.type !== token.type || old.raw !== token.raw) {
        node.replaceWith((this.#nodes[index] = inline(token)));
      }
    });
    for (const surplus of this.#nodes.splice(tokens.length)) surplus.remove();
    this.#tokens = tokens;
  }
}

function inlineText(token: Token): string {
  return decodeEntities((token as Tokens.Text).text);
}

function inline(token: Token): ChildNode {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return around(create(token.type), token);
    case "codespan":
      return textElement("code", "", (token as Tokens.Codespan).text);
    case "br":
      return create("br");
    case "link":
      return link(token as Tokens.Link);
    case "image":
      return image(token as Tokens.Image);
    case "escape":
      return document.createTextNode((token as Tokens.Escape).text);
    case "checkbox":
      return textElement("span", "box", (token as Tokens.Checkbox).checked ? "☑ " : "☐ ");
    case "text":
      return isNested(token) ? around(create("span"), token) : document.createTextNode(inlineText(token));
    default:
      return document.createTextNode(token.raw);
  }
}

function around(node: HTMLElement, token: Token): HTMLElement {
  new Inline(node).update(children(token));
  return node;
}

/** The address if it may be followed, else null. */
function safe(href: string): URL | null {
  if (!/^(?:https?:\/\/|mailto:)/i.test(href)) return null;
  try {
    return new URL(href);
  } catch {
    return null;
  }
}

function anchor(url: URL): HTMLElement {
  const node = create("a");
  node.setAttribute("href", url.href);
  node.setAttribute("rel", "noopener noreferrer");
  node.setAttribute("target", "_blank");
  return node;
}

function link(token: Tokens.Link): HTMLElement {
  const url = safe(token.autolink ? token.href : decodeEntities(token.href));
  const node = url ? anchor(url) : create("span");
  if (token.autolink) node.append(token.text);
  else around(node, token);
  return node;
}

function image(token: Tokens.Image): HTMLElement {
  const url = safe(decodeEntities(token.href));
  const named = decodeEntities(token.text);
  const node = url ? anchor(url) : create("span");
  node.className = "image";
  node.append(`Image${named ? `: ${named}` : ""} (${url?.host ? url.host : "not shown"})`);
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
