/** Walking from one version of a message to another. The server keeps which is shown, for the next visit. */

import type { Api } from "./api.ts";
import type { Conversation, Entry } from "./conversation.ts";

export class Branches {
  readonly #api: Api;
  #wanted: { conversation: string; leaf: string } | null = null;
  #telling = false;

  constructor(api: Api) {
    this.#api = api;
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
      // Without a connection a reload shows the branch from before: nothing is lost, and nothing is worth saying.
      await this.#api.change(wanted.conversation, { current_leaf_id: wanted.leaf }).catch(() => undefined);
    }
    this.#telling = false;
  }
}
