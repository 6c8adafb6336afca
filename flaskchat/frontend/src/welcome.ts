/** What stands where no messages are: a word of welcome, or why the conversation is not shown and what can be done. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import type { Model } from "./protocol.ts";
import type { Session } from "./session.ts";

/** Who answers. The server labels its guide so, which is alone where no model is connected; others have their names. */
function answers(model: Model, alone: boolean): TemplateResult {
  return alone && model.id === "guide" && model.label === "Guide"
    ? html`No language model is connected yet. The <b>guide</b> answers from flaskchat's documentation; ask it how to
        connect one. `
    : html`<b>${model.label}</b> answers. `;
}

export function welcome(session: Session, models: readonly Model[]): TemplateResult {
  const model = models.find((each) => each.id === session.model) ?? models.find((each) => each.default);
  return html`<div class="welcome">
    <h2>What would you like to know?</h2>
    <p>
      ${model ? answers(model, models.length === 1) : nothing}You can reload, close the tab or lose the connection: the
      reply goes on and is here when you come back.${session.conversation.systemPrompt ? html` Your system prompt is set.` : nothing}
    </p>
  </div>`;
}

/** @param again tries to load it once more; @param begin shows a new conversation. */
export function failure({ failure: words, missing, signedOut }: Session, again: () => void, begin: () => void): TemplateResult {
  return html`<div class="welcome">
    <h2>${missing ? "Not here" : "Not loaded"}</h2>
    <p>${words}${missing ? " What you write here begins a new one." : nothing}</p>
    ${signedOut
      ? nothing // Above the composer is what helps.
      : html`<p>
          ${missing ? html`<button @click=${begin}>New conversation</button>` : nothing}
          <button @click=${again}>Try again</button>
        </p>`}
  </div>`;
}
