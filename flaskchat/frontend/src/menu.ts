/** A menu of what can be done: arrows move, a letter jumps, Escape leaves. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import type { Context } from "./panels.ts";
import { Popup } from "./popup.ts";

export type MenuItem =
  | { separator: true }
  | { label: string; key?: string; alarm?: boolean; href?: string; checked?: boolean; action?: () => void };

export class Menu {
  readonly #popup: Popup;
  #label = "";
  #items: MenuItem[] = [];

  constructor(context: Context) {
    this.#popup = new Popup(context.host, ".menu-box", context.home);
  }

  open(anchor: HTMLElement, label: string, items: MenuItem[]): void {
    this.#label = label;
    this.#items = items;
    void this.#popup.open(anchor, "[role^=menuitem]");
  }

  render(): TemplateResult | typeof nothing {
    if (!this.#popup.isOpen) return nothing;
    return html`<div class="menu-box" part="menu" role="menu" aria-label=${this.#label} @keydown=${this.#key} @focusout=${this.#left}>
      ${this.#items.map((item) => {
        if ("separator" in item) return html`<hr role="separator" />`;
        const inside = html`<span>${item.label}</span>${item.key ? html`<kbd aria-hidden="true">${item.key}</kbd>` : nothing}`;
        if (item.href) {
          return html`<a role="menuitem" tabindex="-1" href=${item.href} download @click=${() => this.#popup.close(true)}>${inside}</a>`;
        }
        return html`<button
          class=${item.alarm ? "alarm" : ""}
          role=${item.checked === undefined ? "menuitem" : "menuitemradio"}
          aria-checked=${item.checked ?? nothing}
          tabindex="-1"
          @click=${() => this.#choose(item.action)}
        >
          ${inside}
        </button>`;
      })}
    </div>`;
  }

  #choose(action: (() => void) | undefined): void {
    // The focus goes back first: what is done may well move it on.
    this.#popup.close(true);
    action?.();
  }

  readonly #key = (event: KeyboardEvent): void => {
    event.stopPropagation();
    const items = [...this.#popup.box!.querySelectorAll<HTMLElement>("[role^=menuitem]")];
    const at = items.indexOf((event.target as HTMLElement).closest<HTMLElement>("[role^=menuitem]")!);
    const count = items.length;
    const to = { ArrowDown: (at + 1) % count, ArrowUp: (at - 1 + count) % count, Home: 0, End: count - 1 }[event.key];
    if (to !== undefined) items[to]!.focus();
    else if (event.key === "Escape" || event.key === "Tab") this.#popup.close(true);
    else if (event.key === " ") items[at]?.click();
    else if (event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const letter = event.key.toLowerCase();
      const order = [...items.slice(at + 1), ...items.slice(0, at + 1)];
      order.find((item) => item.textContent?.trim().toLowerCase().startsWith(letter))?.focus();
    } else return;
    event.preventDefault();
  };

  readonly #left = (event: FocusEvent): void => {
    const next = event.relatedTarget;
    if (next instanceof Node && !this.#popup.box?.contains(next)) this.#popup.close(false);
  };
}
