/** What a reply says, as nodes of its own; what is around it is in `thread.ts`. */

import type { Entry } from "./conversation.ts";
import { ReplyText } from "./markdown-lazy.ts";

/** A frame that takes longer than this makes the next ones wait, so that the page stays usable. Milliseconds. */
const SLOW = 24;
/** What a long text may take of one frame; the rest of it comes with the next ones. Milliseconds. */
const SLICE = 12;

/** The nodes of one reply's text and reasoning. */
export class ReplyView {
  readonly text: ReplyText;
  readonly reasoning = document.createTextNode("");
  readonly #entry: Entry;
  #notBefore = 0;

  /** @param changed called when there is something to show that the entry does not tell. */
  constructor(entry: Entry, changed: () => void) {
    this.#entry = entry;
    this.text = new ReplyText(changed);
  }

  /**
   * Show what the entry holds now.
   *
   * @param now milliseconds; false is returned where it is too early for text that is slow to show, or where there is
   *   more of it than fits into a frame.
   */
  update(now: number): boolean {
    const { text, reasoning, running } = this.#entry;
    // Stop is immediate: what is written until the server has heard of it is shown when it has.
    if (running && this.#entry.stopping) return true;
    if (running && now < this.#notBefore) return false;
    const old = this.reasoning.data;
    if (reasoning.startsWith(old)) {
      if (reasoning.length > old.length) this.reasoning.appendData(reasoning.slice(old.length));
    } else {
      this.reasoning.data = reasoning;
    }
    const before = performance.now();
    const complete = this.text.update(text, !running, SLICE);
    const cost = performance.now() - before;
    this.#notBefore = cost > SLOW ? now + 4 * cost : 0;
    return complete;
  }
}
