/** The list of earlier conversations on the page: rows, paging, and the ways to everything else about them. */

import { html, nothing } from "lit";
import type { LitElement, TemplateResult } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { dots, plus } from "./icons.ts";
import type { ConversationList } from "./list.ts";
import type { Panels } from "./panels.ts";
import type { ConversationItem } from "./protocol.ts";
import { signIn } from "./sign-in.ts";
import { when } from "./words.ts";

/** How far from its end the list is when more of it is read. Pixels. */
const AHEAD = 200;

export interface SidebarActions {
  /** The address of a conversation's page; of a new one for null. */
  href: (id: string | null) => string;
  open: (id: string | null) => void;
  /** What is loaded only when it is used; null until then. */
  panels: () => Panels | null;
  use: (action: (panels: Panels) => void) => void;
}

export interface SidebarState {
  /** The conversation that is shown. */
  id: string | null;
  title: string;
  running: boolean;
  /** Nobody is signed in. */
  signedOut: boolean;
  /** The level of its heading where it covers the conversation, which has none to be found then; else 0. */
  heading: number;
}

export class Sidebar {
  readonly #list: ConversationList;
  readonly #actions: SidebarActions;

  constructor(list: ConversationList, actions: SidebarActions) {
    this.#list = list;
    this.#actions = actions;
  }

  render(state: SidebarState): TemplateResult {
    const panels = this.#actions.panels();
    return html`<nav class="side" part="sidebar" aria-label="Conversations" @keydown=${this.#key}>
      ${state.heading ? html`<div class="unseen" role="heading" aria-level=${state.heading}>Conversations</div>` : nothing}
      <a class="new" part="new" href=${this.#actions.href(null)} @click=${(event: MouseEvent) => this.go(event, () => this.#actions.open(null))}>
        ${plus}<span>New conversation</span>
      </a>
      <input
        class="search"
        type="search"
        aria-label="Search conversations"
        placeholder="Search"
        enterkeyhint="search"
        autocomplete="off"
        dir="auto"
        @focus=${() => this.#actions.use(() => undefined)}
        @input=${() => this.#actions.use((loaded) => loaded.search.typed())}
        @keydown=${(event: KeyboardEvent) => this.#actions.panels()?.search.key(event)}
      />
      <div class="rows" @scroll=${this.#scrolled}>${panels?.search.render() ?? this.#rows(state)}</div>
    </nav>`;
  }

  #rows({ id, title, running, signedOut }: SidebarState): TemplateResult {
    const list = this.#list;
    const panels = this.#actions.panels();
    return html`<ul>
        ${repeat(
          list.items,
          (item) => item.id,
          (item) => {
            const here = item.id === id;
            return html`<li>
              ${panels?.row(item) ??
              this.row({
                ...item,
                title: (here && title) || item.title,
                running_run_id: here ? (running ? "here" : null) : item.running_run_id,
              }, here)}
            </li>`;
          },
        )}
      </ul>
      ${list.next ? html`<button class="more" @click=${this.#more}>Earlier conversations</button>` : nothing}
      ${list.failed
        ? html`<p class="note">
            ${signedOut ? signIn() : html`The list could not be loaded. <button @click=${() => list.refresh()}>Try again</button>`}
          </p>`
        : list.loaded && list.items.length === 0
          ? html`<p class="note">Your conversations will be listed here.</p>`
          : nothing}`;
  }

  /** One conversation; `extra` stands below its title. @param open opens it, where not simply as it is. */
  row(
    item: ConversationItem,
    here: boolean,
    title: unknown = item.title || "Untitled",
    extra: unknown = nothing,
    open = (): void => this.#actions.open(item.id),
  ): TemplateResult {
    const writing = item.running_run_id !== null;
    const name = item.title || "Untitled";
    return html`<a
        href=${this.#actions.href(item.id)}
        data-id=${item.id}
        aria-current=${here ? "page" : nothing}
        title=${name}
        @click=${(event: MouseEvent) => this.go(event, open)}
      >
        <span class="name" dir="auto">${title}</span>
        ${extra}
        <span class=${writing ? "when writing" : "when"}>${writing ? "writing…" : when(item.updated_at)}</span>
      </a>
      <button
        class="plain dots"
        aria-label=${`Options for “${name}”`}
        aria-haspopup="menu"
        @click=${(event: Event) => this.#menu(event, item)}
      >
        ${dots}
      </button>`;
  }

  #menu(event: Event, item: ConversationItem): void {
    const button = event.currentTarget as HTMLElement;
    this.#actions.use((panels) => panels.rowMenu(button, item));
  }

  readonly #more = async (event: Event): Promise<void> => {
    const button = event.currentTarget as HTMLElement;
    const root = button.getRootNode() as ShadowRoot;
    const rows = root.querySelectorAll(".side li").length;
    const focused = root.activeElement === button;
    await this.#list.more();
    // The button leaves with the last page; whoever pressed it goes on where the new rows begin.
    await (root.host as LitElement).updateComplete;
    if (focused && !this.#list.next) root.querySelectorAll<HTMLElement>(".side li > a")[rows]?.focus();
  };

  readonly #scrolled = (event: Event): void => {
    const rows = event.currentTarget as HTMLElement;
    const near = rows.scrollHeight - rows.scrollTop - rows.clientHeight < AHEAD;
    if (near && this.#list.next && !this.#list.failed) void this.#list.more();
  };

  /** Up and down through the rows; F2 and Delete for the one that has the focus. */
  readonly #key = (event: KeyboardEvent): void => {
    const row = (event.target as HTMLElement).closest<HTMLElement>(".rows a");
    if (!row || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const links = [...(row.getRootNode() as ShadowRoot).querySelectorAll<HTMLElement>(".rows a")];
    const at = links.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    const id = row.dataset["id"] ?? "";
    const item = this.#list.find(id) ?? this.#actions.panels()?.search.find(id);
    if (to !== undefined) {
      (links[to] ?? (to < 0 ? links[0]!.closest(".side")!.querySelector<HTMLElement>(".search") : null))?.focus();
    } else if (event.key === "Escape" && this.#actions.panels()?.search.clear()) {
      // Out of the results, back to all conversations.
    } else if (item && event.key === "F2") {
      this.#actions.use((panels) => panels.rename.begin(item.id, item.title, "row"));
    } else if (item && event.key === "Delete") {
      this.#actions.use((panels) => panels.remove(item, "row"));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  go(event: MouseEvent, open: () => void): void {
    // Another tab or window is the browser's business.
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    open();
  }
}
