/** One dialog at a time, as the browser's own: it keeps the focus inside, and Escape closes it. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import type { Context } from "./panels.ts";

export type Body = () => TemplateResult;

export class Dialogs {
  readonly #context: Context;
  #open: { title: string; body: Body; back: HTMLElement | null } | null = null;
  /** Where the pointer was pressed last. */
  #pressed: EventTarget | null = null;

  constructor(context: Context) {
    this.#context = context;
  }

  get #element(): HTMLDialogElement | null {
    return this.#context.host.renderRoot.querySelector("dialog");
  }

  /** @param body what it shows; drawn anew with the page. */
  open(title: string, body: Body): void {
    const { host } = this.#context;
    const focused = host.renderRoot.activeElement;
    if (this.#open) return;
    this.#open = { title, body, back: focused instanceof HTMLElement ? focused : null };
    host.requestUpdate();
    void host.updateComplete.then(() => {
      const dialog = this.#element;
      if (dialog && !dialog.open) dialog.showModal();
    });
  }

  readonly close = (): void => this.#element?.close();

  render(): TemplateResult | typeof nothing {
    if (!this.#open) return nothing;
    const { title, body } = this.#open;
    return html`<dialog part="dialog" aria-labelledby="dialog-title" @close=${this.#closed} @keydown=${this.#key} @pointerdown=${this.#press} @click=${this.#click}>
      <div class="dialog">
        <div class="dialog-head">
          <h2 id="dialog-title">${title}</h2>
          <button @click=${this.close}>Close</button>
        </div>
        ${body()}
      </div>
    </dialog>`;
  }

  readonly #closed = (): void => {
    const back = this.#open?.back;
    this.#open = null;
    this.#context.host.requestUpdate();
    if (back?.isConnected) back.focus();
    else this.#context.home();
  };

  /** The page's keys rest while a dialog is open. */
  readonly #key = (event: KeyboardEvent): void => event.stopPropagation();

  readonly #press = (event: PointerEvent): void => void (this.#pressed = event.target);

  /**
   * A click beside the dialog's content closes it: only what is behind it is the dialog itself. It must begin there:
   * whoever selects text and lets go beside the dialog makes a click of both, which is the dialog's.
   */
  readonly #click = (event: MouseEvent): void => {
    if (event.target === this.#element && this.#pressed === this.#element) this.close();
  };
}
