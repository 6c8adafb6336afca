/** Searching the conversations' titles and texts, in the list itself. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { openHit } from "./found.ts";
import type { Context } from "./panels.ts";
import type { ConversationItem, Hit } from "./protocol.ts";
import { why } from "./why.ts";

/** Between the last key stroke and the question to the server. Milliseconds. */
export const PAUSE = 200;

/** A title in pieces: those at odd places are what was looked for. */
export function marked(title: string, query: string): string[] {
  const words = query.split(/\s+/).filter(Boolean).map((word) => word.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  return words.length === 0 ? [title] : title.split(new RegExp(`(${words.join("|")})`, "iu"));
}

/**
 * A hit in three pieces, as it reads without its Markdown. Only what can hardly be anything else is taken away: `2**3`,
 * `f(*args, **more)`, `C#` and `__init__` mean what they say. Marks at the beginning of a line the server has taken away,
 * who knows where lines begin: here `5 > 3` looks like a quotation.
 */
export function plain({ before, match, after }: Hit): string[] {
  return `${before}\0${match}\0${after}`
    .replace(/(?<![\p{L}\p{N}_)\]])!?\[([^\][]*)\]\([^()\s\0]*[./:#][^()\s\0]*\)/gu, "$1")
    .replace(/\s?\|(?:\s*(?:-{2,}|:-+:?|-+:)\s*\|)+/g, "")
    .replace(/`/g, "")
    .replace(/(?<![\p{L}\p{N}*~])(\*{1,3}|~~)(?=\S)([^*~]*[^\s*~])\1(?![\p{L}\p{N}*~]|\p{P}\0?[\p{L}\p{N}])/gu, "$2")
    .split("\0");
}

export class Search {
  readonly #context: Context;
  readonly #row: (item: ConversationItem) => TemplateResult | null;
  /** What was looked for; its results are shown. */
  #query = "";
  #found: ConversationItem[] = [];
  #next: string | null = null;
  #state: "asking" | "found" | "failed" = "found";
  #words = "";
  #timer: ReturnType<typeof setTimeout> | undefined;
  #asking: AbortController | null = null;

  constructor(context: Context, row: (item: ConversationItem) => TemplateResult | null) {
    this.#context = context;
    this.#row = row;
  }

  /** What was found, without what was deleted since. */
  get #items(): ConversationItem[] {
    return this.#found.filter((item) => !this.#context.list.gone(item.id));
  }

  get #input(): HTMLInputElement | null {
    return this.#context.host.renderRoot.querySelector(".search");
  }

  find(id: string): ConversationItem | undefined {
    return this.#items.find((item) => item.id === id);
  }

  /** A conversation has been given another title here. */
  retitle(id: string, title: string): void {
    this.#found = this.#found.map((item) => (item.id === id ? { ...item, title } : item));
  }

  /** The input's text has changed. */
  typed(): void {
    const query = this.#input?.value.trim() ?? "";
    clearTimeout(this.#timer);
    if (query === this.#query) return;
    if (query) this.#timer = setTimeout(() => void this.#ask(query), PAUSE);
    else this.clear();
  }

  focus(): void {
    this.#input?.select();
  }

  /** Back to all conversations. @returns whether there was anything to clear. */
  clear(): boolean {
    const input = this.#input;
    const active = Boolean(this.#query || input?.value);
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#query = "";
    this.#found = [];
    this.#next = null;
    if (input) {
      if (input.value) input.value = "";
      if (this.#context.host.renderRoot.activeElement?.closest(".rows")) input.focus();
    }
    if (active) this.#context.host.requestUpdate();
    return active;
  }

  key(event: KeyboardEvent): void {
    if (event.isComposing || event.keyCode === 229 || event.altKey || event.ctrlKey || event.metaKey) return;
    const first = this.#context.host.renderRoot.querySelector<HTMLElement>(".rows a");
    if (event.key === "ArrowDown") first?.focus();
    else if (event.key === "Enter") void this.#enter();
    else if (event.key !== "Escape" || !this.clear()) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Enter opens the first that is found, also where it was not looked for yet. */
  async #enter(): Promise<void> {
    const query = this.#input?.value.trim() ?? "";
    clearTimeout(this.#timer);
    if (query && (query !== this.#query || this.#state !== "found")) await this.#ask(query);
    const first = this.#items[0];
    if (query && query === this.#query && this.#state === "found" && first) this.#open(first);
  }

  #open({ id, hit }: ConversationItem): void {
    void (hit ? openHit(this.#context, id, hit) : this.#context.open(id));
  }

  async #ask(query: string, cursor: string | null = null): Promise<void> {
    this.#asking?.abort();
    const asking = new AbortController();
    this.#asking = asking;
    this.#query = query;
    this.#state = "asking";
    this.#context.host.requestUpdate();
    try {
      const page = await this.#context.api().conversations(cursor, query, asking.signal);
      if (asking.signal.aborted) return;
      const known = new Set(this.#found.map((item) => item.id));
      this.#found = cursor ? [...this.#found, ...page.items.filter((item) => !known.has(item.id))] : page.items;
      this.#next = page.next_cursor;
      this.#state = "found";
      const count = this.#items.length;
      const more = this.#next ? " and more" : "";
      this.#context.announce(count === 0 ? "Nothing found." : `${count}${more} found.`);
    } catch (error) {
      if (asking.signal.aborted) return;
      this.#state = "failed";
      this.#words = why(error);
    }
    this.#context.host.requestUpdate();
  }

  /** The results; null while nothing is looked for. */
  render(): TemplateResult | null {
    const query = this.#query;
    if (!query) return null;
    const items = this.#items;
    const shown = this.#context.shown().id;
    return html`
      <ul aria-label="Found">
        ${repeat(
          items,
          (item) => item.id,
          (item) => html`<li>
            ${this.#row(item) ??
            this.#context.sidebar.row(item, item.id === shown, title(item, query), item.hit ? hit(item.hit) : nothing, () => this.#open(item))}
          </li>`,
        )}
      </ul>
      ${this.#state === "failed"
        ? html`<p class="note">The search failed. ${this.#words} <button @click=${() => void this.#ask(query)}>Try again</button></p>`
        : this.#state === "asking" && items.length === 0
          ? html`<p class="note">Searching…</p>`
          : items.length === 0
            ? html`<p class="note">Nothing found for “<bdi>${query}</bdi>”. <button @click=${this.#all}>Show all</button></p>`
            : this.#next
              ? html`<button class="more" @click=${() => void this.#ask(query, this.#next)}>More that have it</button>`
              : nothing}
    `;
  }

  readonly #all = (): void => {
    this.clear();
    this.#input?.focus();
  };
}

function title(item: ConversationItem, query: string): unknown {
  if (item.hit || !item.title) return item.title || "Untitled";
  return marked(item.title, query).map((piece, index) => (index % 2 ? html`<mark>${piece}</mark>` : piece));
}

function hit(found: Hit): TemplateResult {
  const [before, match, after] = plain(found);
  return html`<span class="hit" dir="auto">${before}<mark>${match}</mark>${after}</span>`;
}
