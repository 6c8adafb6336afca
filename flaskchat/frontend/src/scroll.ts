/** Following the end of the text, only while the reader is there. */

const NEAR = 8;

export class Follower {
  readonly #scroller: HTMLElement;
  readonly #onChange: () => void;
  #last = 0;
  #following = true;

  /** @param onChange called when the reader leaves the end, or comes back to it. */
  constructor(scroller: HTMLElement, onChange: () => void) {
    this.#scroller = scroller;
    this.#onChange = onChange;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
  }

  get following(): boolean {
    return this.#following;
  }

  /** The text grew. */
  grown(): void {
    if (this.#following) this.#jump();
  }

  /** Go to the end, and follow it from now on. */
  toEnd(): void {
    this.#set(true);
    this.#jump();
  }

  /** The reader looks at something else than the end. */
  leave(): void {
    this.#set(false);
  }

  #jump(): void {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#last = this.#scroller.scrollTop;
  }

  #scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    // Growing text moves the end away from the reader; only the reader moves the text down.
    if (scrollHeight - scrollTop - clientHeight <= NEAR) this.#set(true);
    else if (scrollTop < this.#last - 1) this.#set(false);
    this.#last = scrollTop;
  }

  #set(following: boolean): void {
    if (following === this.#following) return;
    this.#following = following;
    this.#onChange();
  }
}
