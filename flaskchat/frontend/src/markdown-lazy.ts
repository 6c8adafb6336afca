/** A reply's text on the page, whether what shows Markdown is there yet or not. Part of the first load, so small. */

import type { MarkdownView } from "./markdown-view.ts";

type Chunk = typeof import("./markdown-chunk.ts");

/** Milliseconds after which a text is shown as it is written, until it can be shown as what it means. */
const PATIENCE = 400;

/** The styles of what a reply says, once they are loaded. */
export const replyStyles = new CSSStyleSheet();

let chunk: Chunk | null = null;
let coming: Promise<Chunk | null> | null = null;

/** Load what shows Markdown; null where it cannot be had now. The next call tries again. */
export function loadMarkdown(): Promise<Chunk | null> {
  coming ??= import("./markdown-chunk.ts").then(
    (loaded) => {
      replyStyles.replaceSync(loaded.styles);
      return (chunk = loaded);
    },
    () => (coming = null),
  );
  return coming;
}

export class ReplyText {
  readonly node = document.createElement("div");
  #view: MarkdownView | null = null;
  #plain: Text | null = null;
  #since = 0;
  readonly #changed: () => void;

  /** @param changed called when the text can be shown, or only now as it is written: update again. */
  constructor(changed: () => void) {
    this.#changed = changed;
    this.node.className = "markdown";
  }

  /** Show the whole text as it is now; see MarkdownView.update. */
  update(text: string, final: boolean, time = Infinity): boolean {
    if (chunk) return this.#show(chunk, text, final, time);
    if (!text) return true;
    const now = performance.now();
    if (!this.#since) {
      this.#since = now;
      void loadMarkdown().then(this.#changed);
      setTimeout(this.#changed, PATIENCE + 1);
    } else if (now - this.#since > PATIENCE) {
      this.#write(text);
    }
    return true;
  }

  #show(chunk: Chunk, text: string, final: boolean, time: number): boolean {
    if (!this.#view) {
      this.node.replaceChildren();
      this.#plain = null;
      this.#view = new chunk.MarkdownView(this.node);
    }
    return this.#view.update(text, final, time);
  }

  #write(text: string): void {
    if (!this.#plain) {
      this.node.className = "markdown plain";
      this.node.append((this.#plain = document.createTextNode("")));
    }
    this.#plain.data = text;
  }
}
