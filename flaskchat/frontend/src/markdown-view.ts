/** One message's Markdown on the page: what is settled stays, what still grows is changed in place. */

import { isShown, Markdown } from "./markdown.ts";
import { Blocks } from "./nodes.ts";

/** How many blocks before the end are always laid out. */
const NEAR = 20;

/** The level of the message's own heading, below which those of its text stand. */
const TOP = 2;
const HEADING = /^H[2-6]$/i;

export class MarkdownView {
  readonly node: HTMLElement;
  readonly #markdown = new Markdown();
  readonly #blocks: Blocks;
  #settled = 0;
  /** The level of the last heading in the blocks that are final. */
  #level = TOP;

  constructor(node: HTMLElement = document.createElement("div")) {
    this.node = node;
    node.className = "markdown";
    this.#blocks = new Blocks(node);
  }

  /** How many blocks are final. */
  get settled(): number {
    return this.#settled;
  }

  /**
   * Show the whole text as it is now.
   *
   * @param final nothing will follow.
   * @param time milliseconds that this may take, about; false is returned where they were not enough: call it again.
   */
  update(text: string, final: boolean, time = Infinity): boolean {
    const until = performance.now() + time;
    const { restart, changed, settled, tail, complete } = this.#markdown.update(text, final, () => performance.now() < until);
    if (restart) {
      this.#blocks.update([]);
      this.#settled = 0;
    }
    for (const [at, token] of changed) this.#blocks.replace(at, token);
    this.#blocks.update([...settled, ...tail], this.#settled);
    const before = this.#settled;
    this.#settled += settled.filter(isShown).length;
    this.#blocks.settle(before, this.#settled);
    const again = restart || changed.some(([, { type }]) => /^(?:heading|blockquote|list)$/.test(type));
    this.#order(again ? 0 : before);
    this.#blocks.far(this.#settled - NEAR);
    return complete;
  }

  /** Readers that go by headings find none that skips a level, wherever the model began to count. */
  #order(from: number): void {
    let level = from === 0 ? TOP : this.#level;
    for (let at = from; at < this.#blocks.length; at++) {
      if (at === this.#settled) this.#level = level;
      const block = this.#blocks.element(at);
      for (const heading of HEADING.test(block.tagName) ? [block] : block.querySelectorAll("h2,h3,h4,h5,h6")) {
        const own = Number(heading.tagName[1]);
        level = Math.min(own, level + 1);
        if (level === own) heading.removeAttribute("aria-level");
        else heading.setAttribute("aria-level", String(level));
      }
    }
    if (this.#settled >= this.#blocks.length) this.#level = level;
  }
}
