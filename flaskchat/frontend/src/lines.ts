/**
 * The connections of the tab that holds them for all: one for each run that some tab wants, a few at a time. Knows
 * nothing of how tabs talk, and never tries again: a connection that fails ends for all who read it, and each of them
 * comes back in its own time.
 */

import type { Fetch } from "./api.ts";
import { request } from "./following.ts";

/** Connections at once. A browser has six for a server, and there are questions to be sent as well. */
export const SLOTS = 3;
/** How long a run keeps its connection while another waits. Milliseconds. */
export const SLICE = 400;
/** The same, for one whose server has not answered yet. */
const PATIENCE = 5000;
/** A tab that has not been heard of for this long has crashed; one in the background wakes once a minute. */
const GONE = 150_000;
const MARGIN = 5000;
/** Characters of a frame that is not whole yet, and of the body of a refusal. */
const LONGEST = 16 << 20;
const LONGEST_BODY = 1 << 16;

/** A whole frame as it came, and its id; 0 for one without: a heartbeat, or a reset. */
export type Frame = [seq: number, text: string];

export type Note =
  | { kind: "open"; run: string }
  | { kind: "data"; run: string; frames: Frame[] }
  /** The stream is over, or there is none. `status` 0: the connection failed; 200 without a body: it ended. */
  | { kind: "end"; run: string; status: number; headers: [string, string][]; body: string };

interface Line {
  run: string;
  /** The last event that was handed on. */
  after: number;
  /** Who wants it, and when they were heard of last. */
  wanted: Map<string, number>;
  controller: AbortController | null;
  since: number;
  heard: number;
  open: boolean;
}

export interface LinesOptions {
  fetch: Fetch;
  eventsUrl: (runId: string) => string;
  send: (note: Note) => void;
  heartbeat: number;
}

export class Lines {
  readonly #options: LinesOptions;
  /** In the order of their turns. */
  readonly #lines = new Map<string, Line>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: LinesOptions) {
    this.#options = options;
  }

  get runs(): string[] {
    return [...this.#lines.keys()];
  }

  /** Whether a tab other than this one reads a run. */
  shared(run: string, tab: string): boolean {
    const wanted = this.#lines.get(run)?.wanted;
    return wanted !== undefined && (wanted.size > 1 || !wanted.has(tab));
  }

  /** A tab wants the events after `after`. */
  want(tab: string, run: string, after: number): void {
    const now = performance.now();
    let line = this.#lines.get(run);
    if (!line) {
      line = { run, after, wanted: new Map(), controller: null, since: 0, heard: now, open: false };
      this.#lines.set(run, line);
    }
    line.wanted.set(tab, now);
    const silent = now - line.heard > this.#options.heartbeat * 1000 + MARGIN;
    if (after < line.after || silent) {
      // The log has what this tab misses; the others pass over what they have.
      line.after = Math.min(after, line.after);
      this.#release(line);
    } else if (line.open) {
      this.#options.send({ kind: "open", run });
    }
    this.serve();
  }

  drop(tab: string, run: string): void {
    const line = this.#lines.get(run);
    if (line?.wanted.delete(tab) && line.wanted.size === 0) this.#remove(line);
    this.serve();
  }

  /** Break a run's connection off, as a network does. */
  cut(run: string): void {
    const line = this.#lines.get(run);
    if (!line) return;
    this.#remove(line);
    this.#options.send({ kind: "end", run, status: 0, headers: [], body: "" });
    this.serve();
  }

  /** A tab is still there. */
  alive(tab: string): void {
    const now = performance.now();
    for (const line of this.#lines.values()) {
      if (line.wanted.has(tab)) line.wanted.set(tab, now);
      for (const [other, heard] of line.wanted) {
        if (now - heard > GONE) line.wanted.delete(other);
      }
      if (line.wanted.size === 0) this.#remove(line);
    }
    this.serve();
  }

  close(): void {
    clearTimeout(this.#timer);
    for (const line of this.#lines.values()) line.controller?.abort();
    this.#lines.clear();
  }

  #remove(line: Line): void {
    this.#lines.delete(line.run);
    this.#release(line);
  }

  #release(line: Line): void {
    line.controller?.abort();
    line.controller = null;
  }

  /**
   * Give the connections to those whose turn it is. Called by time, by each message and by each piece that arrives: the
   * timers of a tab in the background are slow, the rest is not.
   */
  serve(): void {
    const now = performance.now();
    const waiting = [...this.#lines.values()].filter((line) => !line.controller);
    for (const line of waiting) {
      const served = [...this.#lines.values()].filter((each) => each.controller);
      if (served.length >= SLOTS) {
        const tired = served.find((each) => now - each.since >= (each.open ? SLICE : PATIENCE));
        if (!tired) break;
        this.#release(tired);
        this.#lines.delete(tired.run);
        this.#lines.set(tired.run, tired);
      }
      this.#connect(line);
    }
    clearTimeout(this.#timer);
    if (this.#lines.size > SLOTS) this.#timer = setTimeout(() => this.serve(), SLICE / 4);
  }

  #connect(line: Line): void {
    const controller = new AbortController();
    line.controller = controller;
    line.open = false;
    line.since = line.heard = performance.now();
    void this.#read(line, controller.signal).then((end) => {
      if (end.status === 0) controller.abort(); // What has come to its end is not broken off: the browser would call it a failure.
      if (line.controller !== controller) return; // Its turn was over, or it begins again from an earlier event.
      this.#lines.delete(line.run);
      this.#options.send(end);
      this.serve();
    });
  }

  async #read(line: Line, signal: AbortSignal): Promise<Note & { kind: "end" }> {
    const { run } = line;
    const { fetch, eventsUrl, send } = this.#options;
    const end = { kind: "end" as const, run, status: 0, headers: [] as [string, string][], body: "" };
    try {
      const response = await request(fetch, eventsUrl(run), line.after, signal);
      signal.throwIfAborted();
      const stream = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
      if (response.status !== 200 || !response.body || !stream) {
        for (const name of ["Content-Type", "Retry-After"]) {
          const value = response.headers.get(name);
          if (value !== null) end.headers.push([name, value]);
        }
        const body = response.status === 204 ? "" : (await response.text()).slice(0, LONGEST_BODY);
        return { ...end, status: response.status, body };
      }
      line.open = true;
      line.since = line.heard = performance.now();
      send({ kind: "open", run });
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let buffer = "";
      for (;;) {
        const { done, value } = await reader.read();
        signal.throwIfAborted();
        if (done) return { ...end, status: 200 };
        line.heard = performance.now();
        buffer += decoder.decode(value, { stream: true });
        const { frames, rest } = framesOf(buffer);
        buffer = rest;
        if (buffer.length > LONGEST) return end;
        for (const frame of frames) line.after = cursorAfter(frame, line.after);
        if (frames.length > 0) send({ kind: "data", run, frames });
        if (this.#lines.size > SLOTS) this.serve();
      }
    } catch {
      return end;
    }
  }
}

/** The whole frames at the start of a text, as they are, and what follows them. The server ends lines with LF only. */
export function framesOf(text: string): { frames: Frame[]; rest: string } {
  const frames: Frame[] = [];
  let at = 0;
  for (;;) {
    // A heartbeat is a comment line without a blank line after it.
    const mark = text.startsWith(":", at) ? "\n" : "\n\n";
    const found = text.indexOf(mark, at);
    if (found < 0) break;
    const end = found + mark.length;
    const frame = text.slice(at, end);
    frames.push([Number(field(frame, "id")) || 0, frame]);
    at = end;
  }
  return { frames, rest: text.slice(at) };
}

/** Where a reader at `after` stands once it has read a frame. */
export function cursorAfter([seq, text]: Frame, after: number): number {
  if (seq > 0) return seq;
  if (field(text, "event") !== "reset") return after;
  return (JSON.parse(field(text, "data") ?? "") as { seq: number }).seq;
}

/** A field of a frame. Lines end at LF alone: to a regular expression they end at U+2028 as well, which texts may hold. */
export function field(frame: string, name: string): string | undefined {
  return frame.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
}
