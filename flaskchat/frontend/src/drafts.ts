/**
 * What is written but not sent, per conversation: the next message, or a change of an earlier one. Kept a moment after the
 * last key, and when the page is left.
 */

import type { Kept } from "./kept.ts";

/** Milliseconds. A long text is not stored with each key. */
const PAUSE = 250;

export class Drafts<T extends string | { text: string }> {
  readonly #kept: () => Kept;
  readonly #name: string;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pending: { conversation: string | null; draft: T | null } | null = null;

  /** @param name what they are kept as. */
  constructor(kept: () => Kept, name: string) {
    this.#kept = kept;
    this.#name = name;
  }

  of(conversation: string | null): T | null {
    this.flush();
    return this.#kept().read<T>(this.#name, conversation);
  }

  /** @param draft null: nothing any more. */
  keep(conversation: string | null, draft: T | null): void {
    if (this.#pending && this.#pending.conversation !== conversation) this.flush();
    this.#pending = { conversation, draft };
    clearTimeout(this.#timer);
    // What was sent must not come back, so its end is kept at once.
    if (draft === null) this.flush();
    else this.#timer = setTimeout(() => this.flush(), PAUSE);
  }

  flush(): void {
    clearTimeout(this.#timer);
    if (this.#pending) this.#kept().write(this.#name, this.#pending.conversation, this.#pending.draft);
    this.#pending = null;
  }
}
