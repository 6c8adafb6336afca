/**
 * What was on the wire of a conversation, as it came: the last pieces of it, kept for whoever opens the panel. Nothing is
 * taken apart here, so it costs next to nothing while nobody looks.
 */

export type WireEvent =
  | { kind: "request"; method: "GET" | "POST"; url: string; after: number }
  | { kind: "head"; status: number }
  | { kind: "bytes"; bytes: Uint8Array }
  /** Why it ended: over, closed (by the server, before the run's end), lost, silent, plug, moved, left. */
  | { kind: "end"; reason: string };

export type Tap = (event: WireEvent) => void;

/** `stream` tells apart what runs side by side. `at`: milliseconds since 1970. */
export type WireEntry = WireEvent & { at: number; stream: number };

const ENTRIES = 2000;
const BYTES = 2 << 20;

export class Wire {
  readonly entries: WireEntry[] = [];
  /** Called with each entry as it comes, and with null when all is cleared. */
  onEntry: ((entry: WireEntry | null) => void) | null = null;
  #size = 0;
  #streams = 0;

  /** @returns the tap of one stream. */
  tap(): Tap {
    const stream = ++this.#streams;
    return (event) => {
      const entry = { ...event, at: Date.now(), stream };
      this.entries.push(entry);
      this.#size += sizeOf(entry);
      while (this.entries.length > ENTRIES || (this.#size > BYTES && this.entries.length > 1)) {
        this.#size -= sizeOf(this.entries.shift()!);
      }
      this.onEntry?.(entry);
    };
  }

  clear(): void {
    this.entries.length = this.#size = 0;
    this.onEntry?.(null);
  }
}

function sizeOf(entry: WireEntry): number {
  return entry.kind === "bytes" ? entry.bytes.length : 0;
}
