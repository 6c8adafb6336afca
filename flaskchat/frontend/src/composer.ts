/**
 * Where a message is written, and Stop. Enter sends (on a touch screen it breaks the line), Shift+Enter breaks the line,
 * Escape stops the reply. While a reply is being written, what is sent waits for its end.
 */

import { html, nothing } from "lit";
import { live } from "lit/directives/live.js";
import type { ReactiveControllerHost, TemplateResult } from "lit";
import { Drafts } from "./drafts.ts";
import { square, up } from "./icons.ts";
import type { Kept } from "./kept.ts";
import { sends, touch } from "./keys.ts";
import type { Model } from "./protocol.ts";

/** Models that can be overlooked in the browser's own list; among more, one can search. */
const FEW = 8;

export interface ComposerState {
  /** The conversation whose draft is shown; null: a new one. */
  conversation: string | null;
  running: boolean;
  models: Model[];
  model: string | null;
  /** Why nothing can be written now, in words; empty: it can. */
  disabled: string;
}

export interface ComposerActions {
  kept: () => Kept;
  send: (text: string) => void;
  stop: () => void;
  pick: (model: string) => void;
  /** The reader wants to choose among many models. */
  choose: (button: HTMLElement) => void;
}

export class Composer {
  readonly #host: ReactiveControllerHost & { renderRoot: ParentNode };
  readonly #actions: ComposerActions;
  #text = "";
  #running = false;
  /** Nothing can be sent now. One can still write, and the focus stays where it is. */
  #disabled = false;
  #composing = false;
  #conversation: string | null | undefined = undefined;
  readonly #drafts: Drafts<string>;

  constructor(host: ReactiveControllerHost & { renderRoot: ParentNode }, actions: ComposerActions) {
    this.#host = host;
    this.#actions = actions;
    this.#drafts = new Drafts(actions.kept, "draft");
  }

  get #area(): HTMLTextAreaElement | null {
    return this.#host.renderRoot.querySelector(".composer textarea");
  }

  focus(): void {
    this.#area?.focus({ preventScroll: true });
  }

  /** Put a text that was not accepted back in front of what has been written since. */
  giveBack(text: string): void {
    this.#set(this.#text.trim() ? `${text}\n\n${this.#text}` : text);
  }

  /** Keep what is written: the page may go away. */
  flush(): void {
    this.#drafts.flush();
  }

  /** The new conversation has its id: the draft goes with it. */
  named(id: string): void {
    this.#drafts.keep(null, null);
    this.#conversation = id;
    this.#drafts.keep(id, this.#text || null);
  }

  render(state: ComposerState): TemplateResult {
    this.#running = state.running;
    this.#disabled = state.disabled !== "";
    if (this.#conversation !== state.conversation) {
      this.#conversation = state.conversation;
      this.#text = this.#drafts.of(state.conversation) ?? "";
      void this.#host.updateComplete.then(() => this.#grow());
    }
    const written = this.#text.trim() !== "";
    const picked = state.model ?? state.models.find((model) => model.default)?.id;
    return html`<form class="composer" part="composer" @submit=${this.#submit}>
      <textarea
        part="input"
        rows="1"
        aria-label="Your message"
        placeholder=${state.disabled || (state.running ? "Write the next message" : "Write a message")}
        enterkeyhint=${touch() ? "enter" : "send"}
        dir="auto"
        .value=${this.#text}
        @input=${this.#input}
        @keydown=${this.#key}
        @compositionstart=${() => (this.#composing = true)}
        @compositionend=${() => (this.#composing = false)}
      ></textarea>
      <div class="tools">
        ${state.models.length > FEW
          ? html`<button
              type="button"
              class="model"
              aria-haspopup="listbox"
              aria-label=${`Model: ${state.models.find((model) => model.id === picked)?.label ?? picked}`}
              @click=${(event: Event) => this.#actions.choose(event.currentTarget as HTMLElement)}
            >
              ${state.models.find((model) => model.id === picked)?.label ?? picked}
            </button>`
          : state.models.length > 1
          ? html`<select aria-label="Model" @change=${this.#pick}>
              ${state.models.map(
                (model) => html`<option value=${model.id} .selected=${live(model.id === picked)}>${model.label}</option>`,
              )}
            </select>`
          : nothing}
        <span class="hint">${state.running ? "Enter queues it until the reply has ended" : "Enter sends, Shift+Enter breaks the line"}</span>
        ${state.running
          ? html`${written ? html`<button class="round next" title="Send when the reply has ended (Enter)">${up}<span>Queue</span></button>` : nothing}
              <button type="button" class="round stop" title="Stop (Esc)" @click=${this.#actions.stop}>
                ${square}<span>Stop</span>
              </button>`
          : html`<button class="round" ?disabled=${!written || state.disabled !== ""} title=${written ? "Send (Enter)" : "Write something to send"}>
              ${up}<span>Send</span>
            </button>`}
      </div>
    </form>`;
  }

  readonly #input = (event: Event): void => {
    this.#set((event.target as HTMLTextAreaElement).value);
  };

  readonly #pick = (event: Event): void => {
    this.#actions.pick((event.target as HTMLSelectElement).value);
  };

  readonly #key = (event: KeyboardEvent): void => {
    // Safari ends a composition before the Enter that ended it: that one still has the key code 229.
    if (this.#composing || event.isComposing || event.keyCode === 229) return;
    if (sends(event)) this.#submit(event);
    else if (event.key === "Escape" && this.#running) this.#actions.stop();
  };

  readonly #submit = (event: Event): void => {
    event.preventDefault();
    const text = this.#text.trim();
    if (!text || this.#disabled) return;
    this.#set("");
    this.#actions.send(text);
  };

  #set(text: string): void {
    const area = this.#area;
    const before = Boolean(this.#text.trim());
    this.#text = text;
    if (area && area.value !== text) area.value = text;
    this.#drafts.keep(this.#conversation ?? null, text || null);
    this.#grow();
    if (before !== Boolean(text.trim())) this.#host.requestUpdate();
  }

  /** As high as its text, up to what the style sheet allows. */
  #grow(): void {
    const area = this.#area;
    if (!area || CSS.supports("field-sizing", "content")) return;
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  }
}
