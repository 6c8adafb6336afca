/** A conversation's title, changed where it stands: in its row or in the header. */

import { html } from "lit";
import type { TemplateResult } from "lit";
import type { Context, Notice } from "./panels.ts";
import type { Search } from "./search.ts";
import { why } from "./why.ts";

/** Characters; the server takes no more. */
const LONGEST = 200;

type Where = "row" | "header";

export class Rename {
  readonly #context: Context;
  readonly #notice: (notice: Notice) => void;
  readonly #search: Search;
  #at: { id: string; before: string; where: Where } | null = null;

  constructor(context: Context, notice: (notice: Notice) => void, search: Search) {
    this.#context = context;
    this.#notice = notice;
    this.#search = search;
  }

  begin(id: string, title: string, where: Where): void {
    this.#at = { id, before: title, where };
    const { host } = this.#context;
    host.requestUpdate();
    void host.updateComplete.then(() => host.renderRoot.querySelector<HTMLInputElement>("input.rename")?.select());
  }

  input(id: string | null, where: Where): TemplateResult | null {
    if (!this.#at || this.#at.id !== id || this.#at.where !== where) return null;
    return html`<input
      class="rename"
      aria-label="Title of the conversation"
      maxlength=${LONGEST}
      autocomplete="off"
      enterkeyhint="done"
      dir="auto"
      .value=${this.#at.before}
      @keydown=${this.#key}
      @blur=${(event: Event) => this.#end((event.target as HTMLInputElement).value, false)}
    />`;
  }

  readonly #key = (event: KeyboardEvent): void => {
    event.stopPropagation();
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter") this.#end((event.target as HTMLInputElement).value, true);
    else if (event.key === "Escape") this.#end(null, true);
    else return;
    event.preventDefault();
  };

  /** @param value the new title; null keeps the old one. */
  #end(value: string | null, focus: boolean): void {
    const at = this.#at;
    if (!at) return;
    this.#at = null;
    const { host } = this.#context;
    host.requestUpdate();
    if (focus) {
      const back = at.where === "row" ? `.rows a[data-id="${at.id}"]` : "header .dots";
      void host.updateComplete.then(() => host.renderRoot.querySelector<HTMLElement>(back)?.focus());
    }
    const title = value?.trim().replace(/\s+/g, " ");
    if (title && title !== at.before) void this.#save(at.id, title, at.before);
  }

  async #save(id: string, title: string, before: string): Promise<void> {
    this.#take(id, title);
    try {
      // What the server made of it, which may differ in spaces and signs that cannot be seen.
      this.#take(id, (await this.#context.api().change(id, { title })).title);
      this.#context.announce("Renamed.");
    } catch (error) {
      this.#take(id, before);
      this.#notice({ words: `“${before || "Untitled"}” could not be renamed. ${why(error)}` });
    }
  }

  #take(id: string, title: string): void {
    this.#search.retitle(id, title);
    this.#context.list.retitle(id, title);
    this.#context.changed(id, { title });
  }
}
