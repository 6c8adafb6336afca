/** One message's Markdown on the page: what is settled stays, what still grows is changed in place. */

import { Markdown } from "./markdown.ts";
import { Blocks, isShown } from "./nodes.ts";

export class MarkdownView {
  readonly node: HTMLElement;
  readonly #markdown = new Markdown();
  readonly #blocks: Blocks;
  #settled = 0;

  constructor() {
    this.node = document.createElement("div");
    this.node.className = "markdown";
    this.#blocks = new Blocks(this.node);
  }

  /** How many blocks are final. */
  get settled(): number {
    return this.#settled;
  }

  /** Show the whole text as it is now. `final`: nothing will follow. */
  update(text: string, final: boolean): void {
    const { restart, settled, tail } = this.#markdown.update(text, final);
    if (restart) {
      this.#blocks.update([]);
      this.#settled = 0;
    }
    this.#blocks.update([...settled, ...tail], this.#settled);
    this.#settled += settled.filter(isShown).length;
  }
}
