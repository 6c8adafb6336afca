/** The replies' texts, as nodes: made once each, and drawn at most once per animation frame. */

import type { Entry } from "./conversation.ts";
import { ReplyView } from "./message.ts";

/** What all replies together may take of one frame; milliseconds. */
const FRAME = 20;

export class Drawing {
  readonly #drawn: () => void;
  readonly #views = new WeakMap<Entry, ReplyView>();
  readonly #dirty = new Set<Entry>();
  #frame = 0;

  /** @param drawn called after each frame in which something was. */
  constructor(drawn: () => void) {
    this.#drawn = drawn;
  }

  /** The nodes of a reply, made once and told of every change. */
  view(entry: Entry): ReplyView {
    let view = this.#views.get(entry);
    if (!view) {
      const later = (): void => {
        this.#dirty.add(entry);
        this.#frame ||= requestAnimationFrame(this.#draw);
      };
      view = new ReplyView(entry, later);
      this.#views.set(entry, view);
      entry.onText = () => {
        this.#dirty.add(entry);
        // A tab that is not looked at gets no frames; what is over is shown there, too.
        if (!entry.running) this.#draw(performance.now());
        else later();
      };
      if (!view.update(0)) later();
    }
    return view;
  }

  cancel(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  readonly #draw = (now: number): void => {
    this.cancel();
    const until = performance.now() + FRAME;
    for (const entry of this.#dirty) {
      if (this.#views.get(entry)?.update(now) !== false) this.#dirty.delete(entry);
      if (performance.now() > until) break;
    }
    this.#drawn();
    if (this.#dirty.size > 0) this.#frame = requestAnimationFrame(this.#draw);
  };
}
