/** What shows a reply, in a file of its own: a page without one does not load it. */

import text from "./text.css";

export { MarkdownView } from "./markdown-view.ts";

/** The styles of what a reply says. */
export const styles: string = text;
