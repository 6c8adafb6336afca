/** Walking from one version of a message to another. The server keeps which is shown, for the next visit. */

import type { Api } from "./api.ts";
import type { Conversation, Entry } from "./conversation.ts";
import { Problem } from "./protocol.ts";
import type { Clock } from "./stream.ts";

/** How often the server is told in vain, and the first pause between; each is twice the one before. Milliseconds. */
const ATTEMPTS = 4;
const PAUSE = 1000;

export class Branches {
  readonly #api: Api;
  readonly #clock: Clock;
  readonly #trouble: (words: string) => void;
  #wanted: { conversation: string; leaf: string } | null = null;
  #telling = false;

  /** @param trouble is told, in words, when a choice could not be kept. */
  constructor(api: Api, clock: Clock, trouble: (words: string) => void) {
    this.#api = api;
    this.#clock = clock;
    this.#trouble = trouble;
  }

  /** @returns what is shown in the entry's place now. */
  walk(conversation: Conversation, entry: Entry, step: 1 | -1): Entry {
    const siblings = conversation.siblings(entry);
    const next = siblings[siblings.indexOf(entry) + step];
    if (!next) return entry;
    conversation.show(next);
    const leaf = conversation.leaf?.id;
    if (conversation.id && leaf) {
      this.#wanted = { conversation: conversation.id, leaf };
      void this.#tell();
    }
    return next;
  }

  /** One at a time, or a choice could overtake a later one; only the last counts. */
  async #tell(): Promise<void> {
    if (this.#telling) return;
    this.#telling = true;
    for (let wanted = this.#wanted; wanted; wanted = this.#wanted) {
      this.#wanted = null;
      for (let attempt = 1; !this.#wanted; attempt++) {
        try {
          await this.#api.change(wanted.conversation, { current_leaf_id: wanted.leaf });
          break;
        } catch (error) {
          const final = error instanceof Problem && error.status < 500 && error.status !== 429;
          if (final || attempt === ATTEMPTS) {
            const why = error instanceof Problem ? error.message : "No connection.";
            this.#trouble(`The choice of this version could not be kept: after a reload the other one may be shown. ${why}`);
            break;
          }
          await new Promise<void>((resolve) => void this.#clock.setTimeout(resolve, PAUSE * 2 ** (attempt - 1)));
        }
      }
    }
    this.#telling = false;
  }
}
