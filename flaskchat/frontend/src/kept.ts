/**
 * What this browser keeps for its reader: drafts, messages that are not sent yet, how long replies took.
 *
 * What belongs to a conversation lies in localStorage under its id. What belongs to none yet is the tab's own, in
 * sessionStorage: two new conversations in two tabs are two, and the next user of the browser does not find it.
 * Storage may be forbidden, in a frame or by a setting, or full: then memory has to do.
 */

/** The name of a new conversation's system prompt, which is the server's as soon as there is a conversation. */
export const PROMPT = "prompt";

export type Place = Pick<Storage, "getItem" | "setItem" | "removeItem">;

export class Kept {
  readonly #prefix: string;
  readonly #place: (lasting: boolean) => Place;
  readonly #memory = new Map<string, string>();

  /** @param endpoint chats of one origin that are mounted elsewhere keep things of their own. */
  constructor(endpoint: string, place: (lasting: boolean) => Place = (lasting) => (lasting ? localStorage : sessionStorage)) {
    this.#prefix = `flaskchat:${endpoint}:`;
    this.#place = place;
  }

  key(name: string, conversation: string | null): string {
    return `${this.#prefix}${name}:${conversation ?? "new"}`;
  }

  read<T>(name: string, conversation: string | null): T | null {
    const key = this.key(name, conversation);
    let text = this.#memory.get(key) ?? null;
    try {
      text ??= this.#place(conversation !== null).getItem(key);
      return text === null ? null : (JSON.parse(text) as T);
    } catch {
      return null;
    }
  }

  /** The conversation is gone. */
  forget(conversation: string): void {
    for (const name of ["draft", "edit", "queue", "times"]) this.write(name, conversation, null);
  }

  /** @param value null: nothing any more. */
  write(name: string, conversation: string | null, value: object | string | null): void {
    const key = this.key(name, conversation);
    this.#memory.delete(key);
    const text = value === null ? null : JSON.stringify(value);
    try {
      const place = this.#place(conversation !== null);
      if (text === null) place.removeItem(key);
      else place.setItem(key, text);
    } catch {
      if (text !== null) this.#memory.set(key, text);
    }
  }
}
