/** The title of the tab: the conversation's, and a word when a reply is ready that nobody has seen. */

export class TabTitle {
  #page: string | null = null;
  #title = "";
  #ready = "";

  /** @param title the conversation's. */
  show(title: string): void {
    // What the page was called before any conversation had a title.
    this.#page ??= document.title;
    this.#title = title;
    const name = title ? `${title} · ${this.#page}` : this.#page;
    const wanted = this.#ready ? `${this.#ready} · ${title || this.#page}` : name;
    if (document.title !== wanted) document.title = wanted;
  }

  /** A reply has ended; `whole` unless something went wrong. */
  finished(whole: boolean): void {
    if (!document.hidden || this.#page === null) return;
    this.#ready = whole ? "✓ Reply ready" : "! Reply ended early";
    this.show(this.#title);
  }

  /** The page is looked at again. */
  seen(): void {
    if (!this.#ready) return;
    this.#ready = "";
    this.show(this.#title);
  }
}
