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
 *  3. Conversations that have no id yet share one place, and each sees only its own messages in it.
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
  /** The ids of its messages, as long as it has no id itself. */
  readonly #own = new Set<string>();

  /** @param others those of conversations that are still being sent: what is theirs is not this one's. */
  constructor(kept: Kept, conversation: string | null, others: readonly Queue[] = []) {
    this.#kept = kept;
    this.#conversation = conversation;
    const foreign = new Set(others.flatMap((other) => [...other.#own]));
    for (const { id } of this.#stored().items) if (!foreign.has(id)) this.#own.add(id);
    this.load();
  }

  /** Those to be shown: what is being sent stands in the conversation already. */
  get waiting(): Item[] {
    return this.items.filter((item) => !this.flying.has(item.id));
  }

  /** Read what is stored. @returns the id of the message that the first one follows. */
  load(): string | null {
    const { items, after } = this.#stored();
    this.items = items.filter(this.#mine);
    return after;
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
    const { items, after } = this;
    this.#change(() => []);
    this.#conversation = conversation;
    this.after = after;
    // As it was sent first, it would begin another conversation.
    this.#change(() => items.map(({ body, ...item }) => item));
  }

  /** What a conversation that was left without an id could not send comes to this one, or to the next without one. */
  adopt(left: Queue): void {
    if (this.#conversation === null) for (const id of left.#own) this.#own.add(id);
    left.#own.clear();
    this.load();
  }

  /** What the first one follows has got its id. */
  save(): void {
    this.#change((items) => items);
  }

  #change(change: (items: Item[]) => Item[]): void {
    const { items: all } = this.#stored();
    const before = all.filter(this.#mine);
    const foreign = all.filter((item) => !this.#mine(item));
    this.items = change(before);
    if (this.#conversation === null) for (const { id } of this.items) this.#own.add(id);
    if (this.items.length === 0) this.after = undefined;
    if (before.length + this.items.length === 0) return;
    const stored: Stored = { items: [...foreign, ...this.items], after: this.after?.id ?? null };
    this.#kept.write(NAME, this.#conversation, stored.items.length > 0 ? stored : null);
  }

  #stored(): Stored {
    const stored = this.#kept.read<Stored>(NAME, this.#conversation);
    return { items: Array.isArray(stored?.items) ? stored.items : [], after: stored?.after ?? null };
  }

  readonly #mine = ({ id }: Item): boolean => this.#conversation !== null || this.#own.has(id);
}
