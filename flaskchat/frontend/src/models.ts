/** The choice among many models: a list that gets shorter while one types. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import type { Context } from "./panels.ts";
import { Popup } from "./popup.ts";
import type { Model } from "./protocol.ts";

/** Models whose label or id has all the words, in the order they are listed in. */
export function matching(models: readonly Model[], query: string): Model[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return models.filter((model) => {
    const text = `${model.label} ${model.id}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

export class ModelPicker {
  readonly #context: Context;
  readonly #popup: Popup;
  #query = "";
  #active = 0;

  constructor(context: Context) {
    this.#context = context;
    this.#popup = new Popup(context.host, ".models-box", context.home);
  }

  open(anchor: HTMLElement): void {
    this.#query = "";
    this.#active = Math.max(0, this.#shown.findIndex((model) => model.id === this.#context.models().picked));
    void this.#popup.open(anchor, "input").then(() => this.#follow());
  }

  get #shown(): Model[] {
    return matching(this.#context.models().items, this.#query);
  }

  render(): TemplateResult | typeof nothing {
    if (!this.#popup.isOpen) return nothing;
    const shown = this.#shown;
    const { picked } = this.#context.models();
    return html`<div class="models-box" part="menu" @focusout=${this.#left}>
      <input
        role="combobox"
        aria-label="Find a model"
        aria-expanded="true"
        aria-controls="models"
        aria-autocomplete="list"
        aria-activedescendant=${shown.length > 0 ? `model-${this.#active}` : nothing}
        placeholder="Find a model"
        autocomplete="off"
        .value=${this.#query}
        @input=${this.#typed}
        @keydown=${this.#key}
      />
      <ul id="models" role="listbox" aria-label="Models">
        ${shown.map(
          (model, index) => html`<li
            id=${`model-${index}`}
            role="option"
            class=${index === this.#active ? "active" : ""}
            aria-selected=${model.id === picked}
            @click=${() => this.#pick(model)}
          >
            ${model.label}
          </li>`,
        )}
      </ul>
      ${shown.length === 0 ? html`<p class="note" role="status">No model is called “${this.#query}”.</p>` : nothing}
    </div>`;
  }

  readonly #typed = (event: Event): void => {
    this.#query = (event.target as HTMLInputElement).value;
    this.#active = 0;
    this.#follow();
  };

  readonly #key = (event: KeyboardEvent): void => {
    event.stopPropagation();
    if (event.isComposing || event.keyCode === 229) return;
    const shown = this.#shown;
    const last = shown.length - 1;
    const to = { ArrowDown: this.#active + 1, ArrowUp: this.#active - 1, PageDown: this.#active + 8, PageUp: this.#active - 8 }[
      event.key
    ];
    if (to !== undefined) {
      this.#active = Math.max(0, Math.min(to, last));
      this.#follow();
    } else if (event.key === "Enter") {
      const model = shown[this.#active];
      if (model) this.#pick(model);
    } else if (event.key === "Escape" || event.key === "Tab") this.#popup.close(true);
    else return;
    event.preventDefault();
  };

  #pick(model: Model): void {
    this.#popup.close(true);
    this.#context.pick(model.id);
    this.#context.announce(`${model.label} answers from now on.`);
  }

  /** The list has changed its height, or another line is the one that Enter takes. */
  #follow(): void {
    const { host } = this.#context;
    host.requestUpdate();
    void host.updateComplete.then(() => {
      this.#popup.place();
      this.#popup.box?.querySelector(".active")?.scrollIntoView({ block: "nearest" });
    });
  }

  readonly #left = (event: FocusEvent): void => {
    const next = event.relatedTarget;
    if (next instanceof Node && !this.#popup.box?.contains(next)) this.#popup.close(false);
  };
}
