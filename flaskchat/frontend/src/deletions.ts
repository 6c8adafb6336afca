/** Deleting a conversation, and taking it back: nothing is asked of the server while it can still be taken back. */

import { html } from "lit";
import type { TemplateResult } from "lit";
import type { Context, Notice } from "./panels.ts";
import type { ConversationItem } from "./protocol.ts";
import { why } from "./why.ts";

/** How long Undo is offered. Milliseconds. */
export const UNDO = 6000;

type Target = Pick<ConversationItem, "id" | "title">;

interface Pending extends Target {
  where: "row" | "header";
  /** It was on the page, and is again when it is taken back. */
  shown: boolean;
  timer: ReturnType<typeof setTimeout>;
}

export class Deletions {
  readonly #context: Context;
  readonly #notice: (notice: Notice | null) => void;
  readonly #pending = new Map<string, Pending>();

  constructor(context: Context, notice: (notice: Notice | null) => void) {
    this.#context = context;
    this.#notice = notice;
  }

  row(item: Target): TemplateResult | null {
    if (!this.#pending.has(item.id)) return null;
    return html`<p class="gone">
      <span>Deleted.</span>
      <button class="undo" data-id=${item.id} aria-label=${`Undo: keep “${item.title || "Untitled"}”`} @click=${() => this.undo(item.id)}>
        Undo
      </button>
    </p>`;
  }

  remove({ id, title }: Target, where: "row" | "header"): void {
    if (this.#pending.has(id)) return;
    const shown = this.#context.shown().id === id;
    const timer = setTimeout(() => void this.#send(id), UNDO);
    this.#pending.set(id, { id, title, where, shown, timer });
    const words = `“${title || "Untitled"}” is deleted.`;
    // All this may have been loaded since the key was pressed: whoever has gone on meanwhile is not called back.
    const focused = this.#context.host.renderRoot.activeElement;
    const there = where === "header" ? focused?.closest("header") : focused?.closest("li")?.querySelector(`a[data-id="${id}"]`);
    if (shown) this.#context.show(null);
    if (where === "header") this.#notice({ words, label: "Undo", action: () => this.undo(id) });
    else this.#context.announce(`${words} Undo is offered for ${UNDO / 1000} seconds.`);
    this.#context.host.requestUpdate();
    if (!focused || there) this.#focus(where === "header" ? ".notice .undo" : `.gone .undo[data-id="${id}"]`);
  }

  /** As if nothing had happened; nothing has. */
  undo(id: string): void {
    const pending = this.#pending.get(id);
    if (!pending) return;
    clearTimeout(pending.timer);
    this.#pending.delete(id);
    if (pending.where === "header") this.#notice(null);
    this.#context.announce("It is kept.");
    if (pending.shown) this.#context.show(id);
    this.#context.host.requestUpdate();
    if (pending.where === "header") this.#context.home();
    else this.#focus(`.rows a[data-id="${id}"]`);
  }

  /** Send what waits, now. */
  flush(leaving: boolean): void {
    for (const { id, timer } of this.#pending.values()) {
      clearTimeout(timer);
      void this.#send(id, leaving);
    }
  }

  async #send(id: string, leaving = false): Promise<void> {
    const pending = this.#pending.get(id);
    if (!pending) return;
    const { list, host, shown, show } = this.#context;
    this.#leaveRow(pending);
    try {
      const sent = this.#context.api().remove(id, leaving);
      this.#pending.delete(id);
      list.drop(id);
      await sent;
      if (shown().id === id) show(null);
    } catch (error) {
      list.restore(id);
      this.#notice({ words: `“${pending.title || "Untitled"}” could not be deleted. ${why(error)}` });
      void list.refresh();
    }
    host.requestUpdate();
  }

  /** The button that had the focus goes away: on to the next row, else the one before, else a new conversation. */
  #leaveRow({ id, where }: Pending): void {
    const root = this.#context.host.renderRoot;
    const focused = root.activeElement;
    if (where === "header") {
      this.#notice(null);
      if (focused?.closest(".notice")) this.#context.home();
      return;
    }
    if (!(focused instanceof HTMLElement) || focused.dataset["id"] !== id || !focused.closest(".gone")) return;
    const row = focused.closest("li");
    const near = row?.nextElementSibling ?? row?.previousElementSibling;
    (near?.querySelector<HTMLElement>("a, button") ?? root.querySelector<HTMLElement>(".new"))?.focus();
  }

  #focus(selector: string): void {
    const { host } = this.#context;
    void host.updateComplete.then(() => host.renderRoot.querySelector<HTMLElement>(selector)?.focus());
  }
}
