/** The list of earlier conversations. Fetches it, keeps it fresh, shows it. */

import { html, nothing } from "lit";
import type { ReactiveControllerHost, TemplateResult } from "lit";
import { repeat } from "lit/directives/repeat.js";
import type { Api } from "./api.ts";
import { plus } from "./icons.ts";
import type { ConversationItem } from "./protocol.ts";
import { when } from "./words.ts";

/** While a reply is written in a conversation that is not shown, nobody else tells us when it ends. Milliseconds. */
const LOOK_AGAIN = 5000;

export interface SidebarActions {
  /** The address of a conversation's page; of a new one for null. */
  href: (id: string | null) => string;
  open: (id: string | null) => void;
}

export class Sidebar {
  readonly #host: ReactiveControllerHost;
  readonly #api: () => Api;
  readonly #actions: SidebarActions;
  #items: ConversationItem[] = [];
  #next: string | null = null;
  #loaded = false;
  #failed = false;
  #asking = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(host: ReactiveControllerHost, api: () => Api, actions: SidebarActions) {
    this.#host = host;
    this.#api = api;
    this.#actions = actions;
  }

  title(id: string): string | undefined {
    return this.#items.find((item) => item.id === id)?.title;
  }

  /** Read the first page again; older items that were loaded stay. */
  async refresh(): Promise<void> {
    const asking = ++this.#asking;
    clearTimeout(this.#timer);
    try {
      const page = await this.#api().conversations();
      if (asking !== this.#asking) return;
      const fresh = new Set(page.items.map((item) => item.id));
      const older = this.#loaded ? this.#items.slice(page.items.length).filter((item) => !fresh.has(item.id)) : [];
      this.#items = [...page.items, ...older];
      if (older.length === 0) this.#next = page.next_cursor;
      this.#loaded = true;
      this.#failed = false;
      if (page.items.some((item) => item.running_run_id)) {
        this.#timer = setTimeout(() => void (document.hidden || this.refresh()), LOOK_AGAIN);
      }
    } catch {
      this.#failed = true;
    }
    this.#host.requestUpdate();
  }

  /** Nobody looks at the list any more. */
  close(): void {
    this.#asking += 1;
    clearTimeout(this.#timer);
  }

  render(current: string | null, running: boolean): TemplateResult {
    return html`<nav class="side" aria-label="Conversations">
      <a class="new" href=${this.#actions.href(null)} @click=${(event: MouseEvent) => this.#go(event, null)}>
        ${plus}<span>New conversation</span>
      </a>
      <ul>
        ${repeat(
          this.#items,
          (item) => item.id,
          (item) => {
            const here = item.id === current;
            const writing = here ? running : item.running_run_id !== null;
            return html`<li>
              <a
                href=${this.#actions.href(item.id)}
                aria-current=${here ? "page" : nothing}
                title=${item.title}
                @click=${(event: MouseEvent) => this.#go(event, item.id)}
              >
                <span class="name">${item.title || "Untitled"}</span>
                <span class=${writing ? "when writing" : "when"}>${writing ? "writing…" : when(item.updated_at)}</span>
              </a>
            </li>`;
          },
        )}
      </ul>
      ${this.#next ? html`<button class="more" @click=${this.#more}>Earlier conversations</button>` : nothing}
      ${this.#failed
        ? html`<p class="note">The list could not be loaded. <button @click=${() => this.refresh()}>Try again</button></p>`
        : this.#loaded && this.#items.length === 0
          ? html`<p class="note">Your conversations will be listed here.</p>`
          : nothing}
    </nav>`;
  }

  readonly #more = async (): Promise<void> => {
    const asking = ++this.#asking;
    try {
      const page = await this.#api().conversations(this.#next);
      if (asking !== this.#asking) return;
      const known = new Set(this.#items.map((item) => item.id));
      this.#items = [...this.#items, ...page.items.filter((item) => !known.has(item.id))];
      this.#next = page.next_cursor;
      this.#failed = false;
    } catch {
      this.#failed = true;
    }
    this.#host.requestUpdate();
  };

  #go(event: MouseEvent, id: string | null): void {
    // Another tab or window is the browser's business.
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    this.#actions.open(id);
  }
}
