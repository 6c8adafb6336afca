/** Where the wire's panel stands in the page, and how it comes and goes. The panel itself is loaded when it is opened first. */

import { nothing } from "lit";
import type { LitElement } from "lit";
import { Wire } from "./wire.ts";
import type { WireContext, WirePanel } from "./wire-panel.ts";

interface Place extends Pick<WireContext, "api" | "plug"> {
  /** Put the focus where it is never wrong. */
  home: () => void;
  /** Say why it is not there. */
  trouble: (words: string) => void;
}

export class WirePlace {
  readonly wire = new Wire();
  readonly #host: LitElement & { renderRoot: ShadowRoot };
  readonly #place: Place;
  #panel: WirePanel | null = null;
  #open = false;

  constructor(host: LitElement & { renderRoot: ShadowRoot }, place: Place) {
    this.#host = host;
    this.#place = place;
  }

  /** The class of what it stands in. */
  get class(): string {
    return this.#open ? "main watched" : "main";
  }

  render(): HTMLElement | typeof nothing {
    return this.#open ? this.#panel!.element : nothing;
  }

  readonly toggle = async (): Promise<void> => {
    const host = this.#host;
    if (this.#open) {
      const inside = this.#panel!.element.contains(host.renderRoot.activeElement);
      this.close();
      if (inside) this.#place.home();
      return;
    }
    try {
      const { WirePanel } = await import("./wire-panel.ts");
      const { api, plug } = this.#place;
      this.#panel ??= new WirePanel({ root: host.renderRoot, wire: this.wire, api, plug, close: () => void this.toggle() });
    } catch {
      this.#place.trouble("The wire could not be loaded. Try again, or reload the page.");
      return host.requestUpdate();
    }
    if (this.#open || !host.isConnected) return;
    this.#open = true;
    host.requestUpdate();
    await host.updateComplete;
    this.#panel.open();
    // Whoever is writing goes on writing: the panel was loaded meanwhile, and is there to be watched.
    if (!host.renderRoot.activeElement?.matches("textarea, input")) this.#panel.focus();
  };

  close(): void {
    this.#panel?.close();
    this.#open = false;
    this.#host.requestUpdate();
  }
}
