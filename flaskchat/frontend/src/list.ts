/** The earlier conversations as the server lists them: pages of them, kept fresh while something is written. No DOM. */

import type { Api } from "./api.ts";
import type { ConversationItem } from "./protocol.ts";

/** While a reply is written somewhere, nobody else tells us when it ends. Milliseconds. */
const LOOK_AGAIN = 10_000;

export interface ListEvents {
  onChange: () => void;
  /** The server has another title for a conversation than it had. */
  onTitle?: (id: string, title: string) => void;
  /** Whether nobody looks: then nothing is asked for until somebody does. */
  hidden?: () => boolean;
}

export class ConversationList {
  items: ConversationItem[] = [];
  /** The cursor of the next page; null at the end. */
  next: string | null = null;
  loaded = false;
  failed = false;
  readonly #api: () => Api;
  readonly #events: ListEvents;
  readonly #gone = new Set<string>();
  #asking = 0;
  #more: Promise<void> | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(api: () => Api, events: ListEvents) {
    this.#api = api;
    this.#events = events;
  }

  find(id: string): ConversationItem | undefined {
    return this.items.find((item) => item.id === id);
  }

  /** Whether it was deleted here. */
  gone(id: string): boolean {
    return this.#gone.has(id);
  }

  /** Read the first page again; what was loaded after it stays. */
  async refresh(): Promise<void> {
    const asking = ++this.#asking;
    clearTimeout(this.#timer);
    try {
      const page = await this.#api().conversations();
      if (asking !== this.#asking) return;
      this.#take(page.items, page.next_cursor);
      this.failed = false;
    } catch {
      if (asking !== this.#asking) return;
      this.failed = true;
    }
    if (this.items.some((item) => item.running_run_id)) {
      this.#timer = setTimeout(() => void (this.#events.hidden?.() || this.refresh()), LOOK_AGAIN);
    }
    this.#events.onChange();
  }

  #take(fresh: ConversationItem[], next: string | null): void {
    for (const item of fresh) {
      if (this.find(item.id)?.title !== item.title) this.#events.onTitle?.(item.id, item.title);
    }
    const ids = new Set(fresh.map((item) => item.id));
    const last = fresh.at(-1);
    // One that should be on the first page and is not has been deleted elsewhere.
    const older =
      next !== null && last ? this.items.filter((item) => !ids.has(item.id) && item.updated_at <= last.updated_at) : [];
    if (older.length === 0) this.next = next;
    this.items = [...fresh, ...older].filter((item) => !this.#gone.has(item.id));
    this.loaded = true;
  }

  /** Read the next page. */
  more(): Promise<void> {
    this.#more ??= this.#readMore().finally(() => (this.#more = null));
    return this.#more;
  }

  async #readMore(): Promise<void> {
    if (!this.next) return;
    try {
      const page = await this.#api().conversations(this.next);
      const known = new Set(this.items.map((item) => item.id));
      this.items = [...this.items, ...page.items.filter((item) => !known.has(item.id) && !this.#gone.has(item.id))];
      this.next = page.next_cursor;
      this.failed = false;
    } catch {
      this.failed = true;
    }
    this.#events.onChange();
  }

  /** A conversation has been given another title here. */
  retitle(id: string, title: string): void {
    this.items = this.items.map((item) => (item.id === id ? { ...item, title } : item));
    this.#events.onChange();
  }

  /** It is deleted. An answer that was on its way may still name it. */
  drop(id: string): void {
    this.#gone.add(id);
    this.items = this.items.filter((item) => item.id !== id);
    this.#events.onChange();
  }

  /** It could not be deleted after all. */
  restore(id: string): void {
    this.#gone.delete(id);
  }

  /** Nobody looks at the list any more. */
  close(): void {
    this.#asking += 1;
    clearTimeout(this.#timer);
  }
}
