/**
 * What the page showed when it was left, for the page that comes after it in this tab.
 *
 * A conversation gets its address with the answer to its first message. A reload that was asked for before leads to where
 * the page was then, to a new conversation: the answer may have come all the same, while the next document was on its way.
 * And where the element stands in somebody else's page, no address says what it showed.
 */

import type { Kept } from "./kept.ts";

const NAME = "left";

/** @param conversation what is shown; null: a new one. */
export function leave(kept: Kept, conversation: string | null): void {
  kept.write(NAME, null, conversation);
}

/** @returns the conversation that was left, where the page is loaded anew; null: a new one, or the reader came otherwise. */
export function reloaded(kept: Kept): string | null {
  const left = kept.read<unknown>(NAME, null);
  // It is about the very next page: what comes after a page that could not say what it showed is no reload of this.
  leave(kept, null);
  const [navigation] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
  return typeof left === "string" && navigation?.type === "reload" ? left : null;
}
