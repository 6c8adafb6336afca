/** A block of code: its language's name, a Copy button, and lines that scroll inside. Grows; is coloured when it settled. */

import { languageOf } from "./languages.ts";

/** A text node is measured as a whole when it grows: long code is many, each with lines of its own. Characters. */
const PIECE = 4000;
/** Longer code stays plain: to colour it would hold the page up. Characters. */
const LONGEST = 20_000;
const LONGEST_NAME = 40;
/** Marks that make text read in another order than it is compiled in. */
const REORDERED = /[\u202a-\u202e\u2066-\u2069]/;

let queue: Promise<unknown> = Promise.resolve();

export class CodeBlock {
  readonly node = element("div", "code");
  readonly lang: string;
  readonly #head = element("span", "");
  readonly #body = element("code", "");
  #text = "";
  #last: Text | null = null;

  constructor(lang: string, text: string) {
    this.lang = lang;
    this.#head.append(lang.split(/\s/, 1)[0]!.slice(0, LONGEST_NAME));
    const head = element("div", "code-head");
    const copy = element("button", "copy");
    copy.setAttribute("type", "button");
    copy.append("Copy");
    head.append(this.#head, copy);
    const pre = element("pre", "");
    pre.dir = "ltr";
    pre.tabIndex = 0; // Long lines scroll, by keyboard too.
    pre.append(this.#body);
    this.node.append(head, pre);
    this.grow(text);
  }

  grow(text: string): void {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) {
      this.#body.replaceChildren();
      this.#last = null;
      this.#text = "";
    }
    let at = this.#text.length;
    while (at < text.length) {
      const room = PIECE - (this.#last?.length ?? 0);
      const line = text.indexOf("\n", at + Math.max(0, room - 1)) + 1 || text.length;
      this.#append(text.slice(at, line));
      at = line;
    }
    this.#text = text;
  }

  /** It will not grow any more. */
  settle(): void {
    const text = this.#text;
    if (REORDERED.test(text)) this.#head.append(" · holds marks that reorder text");
    const language = languageOf(this.lang.split(/[\s,{:]/, 1)[0]!);
    if (!language || text.length > LONGEST) return;
    // One at a time, and when the page has nothing better to do.
    queue = queue.then(async () => {
      try {
        const { highlight } = await import("./highlight.ts");
        await idle();
        const nodes = await highlight(text, language);
        if (this.#text === text) this.#body.replaceChildren(nodes);
      } catch {
        // Neither a file that cannot be loaded nor a grammar that gives up takes the code away.
      }
    });
  }

  #append(text: string): void {
    const last = this.#last;
    if (last && last.length < PIECE) {
      last.appendData(text);
    } else if (last) {
      // The piece before ends with a line.
      const piece = element("span", "piece");
      piece.append((this.#last = document.createTextNode(text)));
      this.#body.append(piece);
    } else {
      this.#body.append((this.#last = document.createTextNode(text)));
    }
  }
}

/** Wait until the page is at rest and the reader has nothing selected: what is selected would be lost. */
async function idle(): Promise<void> {
  for (;;) {
    await new Promise<void>((resolve) => {
      if (typeof requestIdleCallback === "function") requestIdleCallback(() => resolve(), { timeout: 500 });
      else setTimeout(resolve, 30);
    });
    if (typeof getSelection !== "function" || getSelection()?.type !== "Range") return;
    await new Promise<void>((resolve) => document.addEventListener("selectionchange", () => resolve(), { once: true }));
  }
}

function element<Name extends keyof HTMLElementTagNameMap>(name: Name, className: string): HTMLElementTagNameMap[Name] {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}
