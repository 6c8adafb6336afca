/** The system prompt of one conversation: what the model is told before its first message. */

import { html, nothing } from "lit";
import type { Body } from "./dialog.ts";
import { why } from "./why.ts";

/**
 * @param save keeps the text; what it throws is said in the dialog, which stays open.
 * @param close closes the dialog.
 */
export function promptDialog(text: string, save: (text: string) => Promise<void>, close: () => void, changed: () => void): Body {
  let saving = false;
  let trouble = "";

  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    if (saving) return;
    const area = (event.currentTarget as HTMLFormElement).querySelector("textarea")!;
    saving = true;
    trouble = "";
    changed();
    try {
      await save(area.value.trim());
      close();
    } catch (error) {
      trouble = `It could not be saved. ${why(error)}`;
    }
    saving = false;
    changed();
  };

  const key = (event: KeyboardEvent): void => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    (event.target as HTMLElement).closest("form")!.requestSubmit();
  };

  return () => html`<form class="prompt" @submit=${submit} @keydown=${key}>
    <p id="prompt-help">What the model is told before this conversation. It holds from your next message on.</p>
    <textarea rows="8" aria-label="System prompt" aria-describedby="prompt-help" dir="auto" autofocus .defaultValue=${text}></textarea>
    ${trouble ? html`<p class="trouble" role="alert">${trouble}</p>` : nothing}
    <p class="buttons">
      <button type="button" @click=${close}>Cancel</button>
      <button class="primary" aria-disabled=${saving}>${saving ? "Saving…" : "Save"}</button>
    </p>
  </form>`;
}
