/** A message that is being changed, in its place. Enter sends it, Escape leaves it as it was. */

import { html, nothing } from "lit";
import type { TemplateResult } from "lit";
import { sends } from "./keys.ts";

export interface EditorActions {
  note: string;
  written: (text: string) => void;
  send: (text: string) => void;
  cancel: () => void;
}

export function editor(text: string, label: string, { note, written, send, cancel }: EditorActions): TemplateResult {
  const submit = (event: Event): void => {
    event.preventDefault();
    const form = (event.target as Element).closest("form")!;
    const now = form.querySelector("textarea")!.value.trim();
    if (now) send(now);
  };
  const key = (event: KeyboardEvent): void => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      cancel();
    } else if (sends(event)) submit(event);
  };
  return html`<form class="editor" @submit=${submit}>
    <textarea
      rows="1"
      aria-label=${label}
      dir="auto"
      .value=${text}
      @input=${(event: Event) => written((event.target as HTMLTextAreaElement).value)}
      @keydown=${key}
    ></textarea>
    ${note ? html`<p class="words">${note}</p>` : nothing}
    <div class="actions">
      <button type="button" @click=${cancel}>Cancel</button>
      <button class="round">Send</button>
    </div>
  </form>`;
}
