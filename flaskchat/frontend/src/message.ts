/** One message on the page. What a reply says is held as nodes of its own; what is around it is a template. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import type { Entry } from "./conversation.ts";
import { ReplyText } from "./markdown-lazy.ts";
import { endWords, runningWords } from "./words.ts";

/** A frame that takes longer than this makes the next ones wait, so that the page stays usable. Milliseconds. */
const SLOW = 24;
/** What a long text may take of one frame; the rest of it comes with the next ones. Milliseconds. */
const SLICE = 12;

/** The nodes of one reply's text and reasoning. */
export class ReplyView {
  readonly text: ReplyText;
  readonly reasoning = document.createTextNode("");
  readonly #entry: Entry;
  #notBefore = 0;

  /** @param changed called when there is something to show that the entry does not tell. */
  constructor(entry: Entry, changed: () => void) {
    this.#entry = entry;
    this.text = new ReplyText(changed);
  }

  /**
   * Show what the entry holds now.
   *
   * @param now milliseconds; false is returned where it is too early for text that is slow to show, or where there is
   *   more of it than fits into a frame.
   */
  update(now: number): boolean {
    const { text, reasoning, running } = this.#entry;
    if (running && now < this.#notBefore) return false;
    const old = this.reasoning.data;
    if (reasoning.startsWith(old)) {
      if (reasoning.length > old.length) this.reasoning.appendData(reasoning.slice(old.length));
    } else {
      this.reasoning.data = reasoning;
    }
    const before = performance.now();
    const complete = this.text.update(text, !running, SLICE);
    const cost = performance.now() - before;
    this.#notBefore = cost > SLOW ? now + 4 * cost : 0;
    return complete;
  }
}

export interface MessageActions {
  regenerate: (entry: Entry) => void;
  continue: (entry: Entry) => void;
  copy: (text: string, button: HTMLElement) => void;
}

export function questionTemplate(entry: Entry): TemplateResult {
  return html`<article class="message user" aria-label="You"><div class="bubble">${entry.text}</div></article>`;
}

export function replyTemplate(entry: Entry, view: ReplyView, actions: MessageActions, last: boolean): TemplateResult {
  const words = entry.running ? runningWords(entry) : endWords(entry);
  const trouble = entry.status === "error" || entry.status === "interrupted" || entry.connection?.phase === "waiting";
  return html`<article class="message reply" aria-label="Reply" aria-busy=${entry.running}>
    ${entry.reasoning
      ? html`<details class="reasoning">
          <summary>${entry.running && !entry.text ? "Thinking" : "Reasoning"}</summary>
          <div class="thoughts">${view.reasoning}</div>
        </details>`
      : nothing}
    ${view.text.node}
    ${words ? html`<p class=${`words ${trouble ? "trouble" : ""} ${entry.running ? "going" : ""}`}>${words}</p>` : nothing}
    ${entry.running ? nothing : buttons(entry, actions, last)}
  </article>`;
}

function buttons(entry: Entry, actions: MessageActions, last: boolean): TemplateResult {
  const cut = entry.status === "stopped" || entry.status === "interrupted";
  const failed = cut || entry.status === "error";
  return html`<div class="actions">
    ${last && cut && entry.id ? html`<button @click=${() => actions.continue(entry)}>Continue</button>` : nothing}
    ${last && failed && entry.id ? html`<button @click=${() => actions.regenerate(entry)}>Try again</button>` : nothing}
    ${entry.text
      ? html`<button class="quiet" @click=${(event: Event) => actions.copy(entry.text, event.currentTarget as HTMLElement)}>Copy</button>`
      : nothing}
  </div>`;
}
