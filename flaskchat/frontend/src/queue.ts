/**
 * Messages that the server has not taken yet: those that wait for a reply to end, those that are on their way, and those
 * that could not be sent. Kept in the browser, so that a reload loses none and sends none twice.
 *
 * Deliberate choices:
 *
 *  1. A message keeps its client id, and from the first attempt its whole body: the server answers the same request with
 *     the same run. Only an edited text gets a new id.
 *  2. Each change is made to what is stored now, not to what this tab remembers: another tab may have sent a message,
 *     edited or withdrawn it.
 */

import type { Entry } from "./conversation.ts";
import type { Kept } from "./kept.ts";
import { newId } from "./protocol.ts";
import type { SendBody } from "./protocol.ts";

export interface Item {
  /** The client's id of the message. */
  id: string;
  text: string;
  /** The message it follows, null for the beginning: an edit says so. Absent: it follows what was sent before it. */
  parent?: string | null;
  /** It had to wait when it was written, and so it may come to wait for a decision. */
  queued?: boolean;
  /** As it was sent first. */
  body?: SendBody;
  /** Why it could not be sent. */
  why?: string;
}

interface Stored {
  items: Item[];
  after: string | null;
}

const NAME = "queue";

export class Queue {
  items: readonly Item[] = [];
  /** Those that are being sent by this page. */
  readonly flying = new Set<string>();
  /** What the first of those without a parent of its own follows; undefined: whatever is shown last. */
  after: Entry | null | undefined = undefined;
  readonly #kept: Kept;
  #conversation: string | null;

  constructor(kept: Kept, conversation: string | null) {
    this.#kept = kept;
    this.#conversation = conversation;
    this.load();
  }

  /** Those to be shown: what is being sent stands in the conversation already. */
  get waiting(): Item[] {
    return this.items.filter((item) => !this.flying.has(item.id));
  }

  /** Read what is stored. @returns the id of the message that the first one follows. */
  load(): string | null {
    const stored = this.#kept.read<Stored>(NAME, this.#conversation);
    this.items = Array.isArray(stored?.items) ? stored.items : [];
    return stored?.after ?? null;
  }

  /** Whether a storage event of another tab is about this. */
  owns(key: string | null): boolean {
    return key === this.#kept.key(NAME, this.#conversation);
  }

  get(id: string): Item | undefined {
    return this.items.find((item) => item.id === id);
  }

  add(item: Item): void {
    this.#change((items) => [...items, item]);
  }

  /** It was taken by the server, or withdrawn. */
  remove(id: string): void {
    this.#change((items) => items.filter((item) => item.id !== id));
  }

  put(id: string, change: Partial<Item>): void {
    this.#change((items) => items.map((item) => (item.id === id ? { ...item, ...change } : item)));
  }

  /** Another text is another message: the server may have the first one. */
  edit(id: string, text: string): void {
    this.#change((items) =>
      items.map((item) => {
        if (item.id !== id || item.text === text) return item;
        const { body, why, ...rest } = item;
        return { ...rest, id: body ? newId() : id, text };
      }),
    );
  }

  /** Try those again that could not be sent. */
  retry(): void {
    this.#change((items) => items.map(({ why, ...item }) => item));
  }

  /** It was refused without a trace, and may go elsewhere. */
  thaw(id: string): void {
    this.#change((items) =>
      items.map((item) => {
        if (item.id !== id) return item;
        const { body, why, ...rest } = item;
        return { ...rest, queued: true };
      }),
    );
  }

  /** The conversation has its id now. */
  named(conversation: string): void {
    if (this.#conversation !== null) return;
    const items = this.items;
    this.#kept.write(NAME, null, null);
    this.#conversation = conversation;
    this.#change(() => [...items]);
  }

  /** What the first one follows has got its id. */
  save(): void {
    this.#change((items) => items);
  }

  #change(change: (items: Item[]) => Item[]): void {
    this.load();
    const before = this.items;
    this.items = change([...before]);
    if (this.items.length === 0) {
      this.after = undefined;
      if (before.length > 0) this.#kept.write(NAME, this.#conversation, null);
      return;
    }
    const stored: Stored = { items: [...this.items], after: this.after?.id ?? null };
    this.#kept.write(NAME, this.#conversation, stored);
  }
}
