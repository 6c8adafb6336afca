/** What is known of a reply besides its text. */

import { html } from "lit";
import type { TemplateResult } from "lit";
import type { Entry } from "./conversation.ts";
import { span } from "./words.ts";

const count = (tokens: number): string => tokens.toLocaleString();

/** What there is to tell, each under its name. */
export function facts({ model, usage, timing, text, reasoning, running }: Entry): [string, string][] {
  const rows: [string, string][] = [];
  if (model) rows.push(["Model", model]);
  if (usage?.input_tokens) {
    rows.push(["Tokens read", count(usage.input_tokens) + (usage.cached_tokens ? `, ${count(usage.cached_tokens)} of them cached` : "")]);
  }
  if (usage?.output_tokens) {
    rows.push([
      "Tokens written",
      count(usage.output_tokens) + (usage.reasoning_tokens ? `, ${count(usage.reasoning_tokens)} of them reasoning` : ""),
    ]);
  }
  if (!text && !reasoning && !running) {
    // Whoever has seen the reply or not: nothing has taken any time.
    rows.push(["Text", "none came"]);
  } else if (timing && timing.first !== null) {
    rows.push(["First token after", span(timing.first)]);
    if (timing.rest !== null) {
      rows.push(["Written in", span(timing.rest)]);
      const speed = ((usage?.output_tokens ?? 0) / timing.rest) * 1000;
      // All in a lump: no speed can be told from that.
      if (speed > 0 && timing.rest > 50) rows.push(["Speed", `${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tokens/s`]);
    }
  } else {
    rows.push(["Times", "not known: this browser did not see the reply from its beginning"]);
  }
  return rows;
}

export function details(entry: Entry): TemplateResult {
  return html`<dl class="details">
    ${facts(entry).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}
