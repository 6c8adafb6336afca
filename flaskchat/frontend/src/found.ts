/** A search's hit in its conversation: the message is brought into sight, and the words that were looked for are marked. */

import type { Context } from "./panels.ts";
import type { Hit } from "./protocol.ts";

/** The name of the mark in the document's registry. */
const MARK = "flask-chat-found";
/** A long reply is drawn over many frames, after what draws it is loaded. Milliseconds. */
const PATIENCE = 3000;
/** Letters before the hit that tell it from the same words elsewhere in the message. */
const CONTEXT = 16;

/** Where a hit is in a text: where what stands before it is the same, else where its words come first; -1: nowhere. */
export function placeOf(text: string, { before, match }: Pick<Hit, "before" | "match">): number {
  const letters = (each: string): string => each.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "").slice(-CONTEXT);
  const lower = text.toLowerCase();
  const word = match.toLowerCase();
  const wanted = letters(before);
  const first = word ? lower.indexOf(word) : -1;
  // In lower case a few signs have another length: then no place would be right.
  if (first < 0 || lower.length !== text.length) return -1;
  for (let at = first; at >= 0; at = lower.indexOf(word, at + 1)) {
    // Marks of Markdown are in the hit but not in what is shown.
    if (letters(text.slice(Math.max(0, at - 8 * CONTEXT), at)).endsWith(wanted.slice(-CONTEXT / 2))) return at;
  }
  return first;
}

/** Open the conversation of a hit, where the hit is. */
export async function openHit(context: Context, id: string, hit: Hit): Promise<void> {
  await context.open(id);
  if (context.shown().id !== id) return;
  const article = await context.reveal(hit.message_id);
  if (!article) return;
  const focused = context.host.renderRoot.activeElement;
  // Whoever has gone on meanwhile, or begun to write, is left where they are.
  if (!focused || focused.matches(".scroll, .composer textarea:placeholder-shown")) {
    article.tabIndex = -1;
    article.addEventListener("blur", () => article.removeAttribute("tabindex"), { once: true });
    article.focus({ preventScroll: true });
  }
  center(article, article);
  const until = performance.now() + PATIENCE;
  let range = rangeOf(article, hit);
  while (!range && performance.now() < until && article.isConnected) {
    await new Promise((resolve) => requestAnimationFrame(resolve));
    range = rangeOf(article, hit);
  }
  if (!range || !article.isConnected) return;
  if (CSS.highlights) CSS.highlights.set(MARK, new Highlight(range));
  center(article, range);
  // What was far from sight had a height that was only thought of.
  requestAnimationFrame(() => center(article, range));
}

function rangeOf(article: HTMLElement, hit: Hit): Range | null {
  const walker = document.createTreeWalker(article.querySelector(".bubble, .markdown") ?? article, NodeFilter.SHOW_TEXT);
  const nodes: Text[] = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) nodes.push(node as Text);
  const start = placeOf(nodes.map(({ data }) => data).join(""), hit);
  if (start < 0) return null;
  const range = document.createRange();
  let at = 0;
  for (const node of nodes) {
    const end = start + hit.match.length;
    if (start >= at && start < at + node.length) range.setStart(node, start - at);
    if (end > at && end <= at + node.length) range.setEnd(node, end - at);
    at += node.length;
  }
  return range;
}

/** A third down, where one reads. */
function center(article: HTMLElement, what: Range | HTMLElement): void {
  const scroller = article.closest(".scroll");
  if (!scroller) return;
  const frame = scroller.getBoundingClientRect();
  const box = what.getBoundingClientRect();
  scroller.scrollTop += box.top - frame.top - (what === article ? 16 : frame.height / 3);
}
