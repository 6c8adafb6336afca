/** What is written but not sent, per conversation. Kept a moment after the last key, and when the page is left. */

import type { Kept } from "./kept.ts";

const NAME = "draft";
/** Milliseconds. A long text is not stored with each key. */
const PAUSE = 250;

export class Drafts {
  readonly #kept: () => Kept;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pending: { conversation: string | null; text: string } | null = null;

  constructor(kept: () => Kept) {
    this.#kept = kept;
  }

  of(conversation: string | null): string {
    this.flush();
    const text = this.#kept().read<unknown>(NAME, conversation);
    return typeof text === "string" ? text : "";
  }

  keep(conversation: string | null, text: string): void {
    if (this.#pending && this.#pending.conversation !== conversation) this.flush();
    this.#pending = { conversation, text };
    clearTimeout(this.#timer);
    // What was sent must not come back, so its end is kept at once.
    if (text === "") this.flush();
    else this.#timer = setTimeout(() => this.flush(), PAUSE);
  }

  flush(): void {
    clearTimeout(this.#timer);
    if (this.#pending) this.#kept().write(NAME, this.#pending.conversation, this.#pending.text || null);
    this.#pending = null;
  }
}
