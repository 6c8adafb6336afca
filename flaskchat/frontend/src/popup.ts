/** A small box beside the button that opened it: where it stands, when it closes, and where the focus goes then. */

import type { LitElement } from "lit";

const GAP = 4;
const MARGIN = 8;

interface Place {
  x: number;
  y: number;
}

interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Below the anchor and within the frame; above it where there is more room. All in the same coordinates. */
export function place(anchor: Box, size: { width: number; height: number }, frame: Box): Place {
  const below = anchor.top + anchor.height + GAP - frame.top;
  const above = anchor.top - frame.top - GAP - size.height;
  const fits = below + size.height <= frame.height - MARGIN;
  const roomBelow = frame.height - below;
  const y = fits || roomBelow >= anchor.top - frame.top ? below : above;
  // Its start at the anchor's start, or its end at the anchor's end where the anchor is in the second half.
  const half = anchor.left + anchor.width / 2 - frame.left > frame.width / 2;
  const x = half ? anchor.left + anchor.width - size.width - frame.left : anchor.left - frame.left;
  return {
    x: Math.max(MARGIN, Math.min(x, frame.width - size.width - MARGIN)),
    y: Math.max(MARGIN, Math.min(y, frame.height - size.height - MARGIN)),
  };
}

export class Popup {
  readonly #host: LitElement & { renderRoot: ShadowRoot };
  readonly #home: () => void;
  readonly #selector: string;
  #anchor: HTMLElement | null = null;

  /** @param selector of the box; @param home where the focus goes when the button is gone. */
  constructor(host: LitElement & { renderRoot: ShadowRoot }, selector: string, home: () => void) {
    this.#host = host;
    this.#selector = selector;
    this.#home = home;
  }

  get isOpen(): boolean {
    return this.#anchor !== null;
  }

  get box(): HTMLElement | null {
    return this.#host.renderRoot.querySelector(this.#selector);
  }

  /** Show it, and put the focus on what `first` selects within it. Opened again by its own button, it closes. */
  async open(anchor: HTMLElement, first: string): Promise<void> {
    if (this.#anchor === anchor) return this.close(true);
    this.close(false);
    this.#anchor = anchor;
    anchor.setAttribute("aria-expanded", "true");
    window.addEventListener("pointerdown", this.#outside, true);
    window.addEventListener("resize", this.#away);
    this.#host.requestUpdate();
    await this.#host.updateComplete;
    this.place();
    this.box?.querySelector<HTMLElement>(first)?.focus();
  }

  place(): void {
    const box = this.box;
    const app = this.#host.renderRoot.querySelector(".app");
    if (!box || !app || !this.#anchor) return;
    const { x, y } = place(this.#anchor.getBoundingClientRect(), box.getBoundingClientRect(), app.getBoundingClientRect());
    box.style.left = `${x}px`;
    box.style.top = `${y}px`;
  }

  /** @param focus whether the focus goes back to the button. */
  close(focus: boolean): void {
    const anchor = this.#anchor;
    if (!anchor) return;
    this.#anchor = null;
    anchor.setAttribute("aria-expanded", "false");
    window.removeEventListener("pointerdown", this.#outside, true);
    window.removeEventListener("resize", this.#away);
    if (focus) {
      if (anchor.isConnected) anchor.focus();
      else this.#home();
    }
    this.#host.requestUpdate();
  }

  readonly #away = (): void => this.close(true);

  readonly #outside = (event: Event): void => {
    const path = event.composedPath();
    const box = this.box;
    // The button itself closes by its own click.
    if ((box && path.includes(box)) || (this.#anchor && path.includes(this.#anchor))) return;
    this.close(false);
  };
}
