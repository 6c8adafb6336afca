/**
 * Following one run: ask or resume, read, and go on after a drop. A state machine over `fetch`; no DOM.
 *
 * Deliberate choices:
 *
 *  1. The cursor is the `seq` of the last event that was handed on. Whatever is sent twice is passed over, and a gap
 *     counts as a drop: the log has the rest.
 *  2. Before the run has an id, a failed request is repeated with the same body, and so the same client id: the server
 *     then follows the run it already has (one generation per client id).
 *  3. A response that ends without a terminal event is a drop. If it ended cleanly (a worker that leaves does so), the
 *     first attempt to come back is made without a word to the reader.
 *  4. Silence is a drop too: two heartbeats and a margin without a byte mean that nobody is there.
 *  5. `navigator.onLine` is a hint, never a gate: a server on this machine answers offline as well. Going offline makes
 *     us try at once whether the connection still stands, coming online ends the wait.
 *  6. Following never gives up, it only slows down. Asking gives up after a few attempts, because the user's text can
 *     be handed back; while the browser says it is offline it waits.
 */

import { createParser } from "eventsource-parser";
import type { Fetch } from "./api.ts";
import { PLUG, request } from "./following.ts";
import type { Follow } from "./following.ts";
import { isTerminal, parseEvent, Problem, problemOf } from "./protocol.ts";
import type { RunEvent, SendBody, TerminalEvent } from "./protocol.ts";
import type { Tap } from "./wire.ts";

/** Time and chance, so that tests can hold both. Milliseconds. */
export interface Clock {
  setTimeout(callback: () => void, delay: number): unknown;
  clearTimeout(handle: unknown): void;
  random(): number;
}

export const REAL: Clock = {
  setTimeout: (callback, delay) => setTimeout(callback, delay),
  clearTimeout: (handle) => clearTimeout(handle as ReturnType<typeof setTimeout>),
  random: Math.random,
};

export type Connection =
  | { phase: "connecting" }
  | { phase: "live" }
  /** A drop. `silent`: the stream ended cleanly and nothing has failed yet. */
  | { phase: "waiting"; reason: "lost" | "busy" | "offline"; attempt: number; silent: boolean; sent: boolean };

export type Outcome =
  | { kind: "ended"; event: TerminalEvent }
  /** The run is over and the cursor was at its end: the conversation holds the rest. */
  | { kind: "over" }
  | { kind: "missing" }
  | { kind: "refused"; problem: Problem }
  /** The question never reached the server, as far as we know. */
  | { kind: "unsent" }
  | { kind: "closed" };

export interface StreamOptions {
  fetch: Fetch;
  /** Where to ask, and with what; absent when an existing run is followed. */
  ask?: { url: string; body: SendBody };
  runId?: string;
  eventsUrl: (runId: string) => string;
  /** How a run is followed, where that is not by a request of its own. */
  follow?: Follow;
  /** Whether the answer to the question may be read to its end. Else the run is followed as soon as it has a name. */
  keep?: (over: AbortSignal) => Promise<boolean>;
  /** Sees what is asked and what comes, before it is understood. */
  tap?: Tap;
  onEvent: (event: RunEvent, seq: number) => void;
  onConnection?: (connection: Connection) => void;
  onRunId?: (runId: string) => void;
  clock?: Clock;
  /** Seconds between the server's heartbeats. */
  heartbeat?: number;
  offline?: boolean;
}

const MARGIN = 5_000;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 15_000;
const ASK_ATTEMPTS = 5;
const NOT_A_STREAM_ATTEMPTS = 5;
/** How long the server has to end the body after the terminal event. Some proxy may keep it open. Milliseconds. */
const LAST = 3000;
/** Characters of one frame: far above the longest reply the server keeps. */
const MAX_FRAME = 16 << 20;

type Drop = { kind: "drop"; clean: boolean; busy: boolean; after: number };
type Move = { kind: "move" };
const LOST: Drop = { kind: "drop", clean: false, busy: false, after: 0 };

export class RunStream {
  runId: string | null;
  cursor = 0;
  readonly #options: StreamOptions;
  readonly #clock: Clock;
  #controller: AbortController | null = null;
  #closed = false;
  #offline: boolean;
  #attempt = 0;
  #retry = 1000;
  #notStreams = 0;
  /** The body was read to its end. */
  #complete = false;
  #wake: (() => void) | null = null;

  constructor(options: StreamOptions) {
    this.#options = options;
    this.#clock = options.clock ?? REAL;
    this.#offline = options.offline ?? false;
    this.runId = options.runId ?? null;
  }

  /** Follow until the run is over, or cannot be followed. */
  async run(): Promise<Outcome> {
    this.#note({ phase: "connecting" });
    while (!this.#closed) {
      const result = await this.#once();
      if (this.#closed) break;
      if (result.kind === "move") continue;
      if (result.kind !== "drop") return result;
      const sent = this.runId !== null;
      if (!sent && !this.#offline && this.#attempt + 1 >= ASK_ATTEMPTS) return { kind: "unsent" };
      const reason = this.#offline ? "offline" : result.busy ? "busy" : "lost";
      const silent = result.clean && this.#attempt === 0;
      this.#note({ phase: "waiting", reason, attempt: this.#attempt + 1, silent, sent });
      await this.#pause(result);
      if (sent || !this.#offline) this.#attempt += 1;
    }
    return { kind: "closed" };
  }

  /** Stop following. The run itself goes on. */
  close(): void {
    this.#closed = true;
    this.#controller?.abort();
    this.#wake?.();
  }

  /** Break the connection off, as a network does. @returns whether there was one. */
  plug(): boolean {
    this.#controller?.abort(PLUG);
    return this.#controller !== null;
  }

  /** Do not wait any longer before the next attempt. */
  wake(): void {
    this.#wake?.();
  }

  /** What the browser thinks of its network. */
  set offline(offline: boolean) {
    this.#offline = offline;
    if (offline) {
      this.#controller?.abort("offline");
    } else {
      this.#attempt = 0;
      this.#wake?.();
    }
  }

  async #once(): Promise<Outcome | Drop | Move> {
    const controller = (this.#controller = new AbortController());
    const over = new AbortController();
    this.#complete = false;
    const { keep, tap } = this.#options;
    const asked = this.runId === null;
    let end = "";
    let watchdog: unknown;
    const alive = (): void => {
      this.#clock.clearTimeout(watchdog);
      watchdog = this.#clock.setTimeout(
        () => controller.abort("silent"),
        (this.#options.heartbeat ?? 15) * 2000 + MARGIN,
      );
    };
    alive();
    try {
      const response = await this.#request(controller.signal, over.signal);
      alive();
      const refusal = await this.#head(response);
      tap?.({ kind: "head", status: response.status });
      if (refusal) return refusal;
      const runId = response.headers.get("Flaskchat-Run-Id");
      if (runId) this.#known(runId);
      this.#note({ phase: "live" });
      if (asked && this.runId !== null && keep && !(await keep(over.signal))) {
        end = "moved";
        return { kind: "move" };
      }
      const result = await this.#read(response.body!, alive);
      end = result.kind === "drop" ? "closed" : "over";
      return result;
    } catch {
      // No connection, a cut one, one we aborted, or bytes that are no frames: the log has what we miss.
      const { aborted, reason } = controller.signal;
      end = this.#closed ? "left" : aborted ? String(reason) : "lost";
      return LOST;
    } finally {
      if (end) tap?.({ kind: "end", reason: end });
      this.#clock.clearTimeout(watchdog);
      this.#controller = null;
      over.abort();
      // What has come to its end is not broken off: the browser may not have noted that yet, and call it a failure.
      if (!this.#complete) controller.abort();
    }
  }

  #request(signal: AbortSignal, over: AbortSignal): Promise<Response> {
    const { fetch, ask, eventsUrl, follow, tap } = this.#options;
    if (this.runId !== null) {
      const url = eventsUrl(this.runId);
      tap?.({ kind: "request", method: "GET", url, after: this.cursor });
      return follow ? follow(this.runId, this.cursor, signal, over) : request(fetch, url, this.cursor, signal);
    }
    tap?.({ kind: "request", method: "POST", url: ask!.url, after: 0 });
    return fetch(ask!.url, {
      method: "POST",
      headers: { Accept: "text/event-stream", "Content-Type": "application/json" },
      body: JSON.stringify(ask!.body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  }

  /** What the head of the answer means, or null when a stream follows. */
  async #head(response: Response): Promise<Outcome | Drop | null> {
    const following = this.runId !== null;
    if (response.status === 204) return { kind: "over" };
    if (response.ok) {
      const type = response.headers.get("Content-Type") ?? "";
      if (response.body && type.startsWith("text/event-stream")) return null;
      this.#notStreams += 1; // A captive portal, or a proxy's own page.
      if (this.#notStreams < NOT_A_STREAM_ATTEMPTS) return LOST;
      const detail = "Something between this page and the server answers in its place.";
      return { kind: "refused", problem: new Problem(response.status, { detail }, null) };
    }
    const problem = await problemOf(response);
    const drop: Drop = { kind: "drop", clean: false, busy: true, after: problem.retryAfter ?? 0 };
    const passing = response.status >= 500 || response.status === 429 || response.status === 408;
    if (following) {
      if (response.status === 404) return { kind: "missing" };
      return passing ? drop : { kind: "refused", problem };
    }
    // A worker that leaves, or a proxy without a server: another one will take the question. Other noes are final.
    const elsewhere = problem.code === "draining" || (problem.code === "" && [502, 503, 504].includes(response.status));
    return elsewhere ? drop : { kind: "refused", problem };
  }

  async #read(body: ReadableStream<Uint8Array>, alive: () => void): Promise<Outcome | Drop> {
    const frames: { event?: string | undefined; id?: string | undefined; data: string }[] = [];
    const parser = createParser({
      onEvent: (frame) => void frames.push(frame),
      onRetry: (retry) => (this.#retry = retry),
      maxBufferSize: MAX_FRAME,
    });
    const decoder = new TextDecoder();
    const reader = body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      this.#complete = done;
      if (done) return { kind: "drop", clean: true, busy: false, after: 0 };
      alive();
      if (value.length > 0) this.#options.tap?.({ kind: "bytes", bytes: value });
      parser.feed(decoder.decode(value, { stream: true }));
      for (const frame of frames.splice(0)) {
        const ended = this.#frame(frame.event, frame.id, frame.data);
        if (ended) {
          await this.#drain(reader);
          return { kind: "ended", event: ended };
        }
      }
    }
  }

  /**
   * Read to the end that follows the terminal event: to leave before is a request that was broken off, for the browser's
   * tools and for the server. (Chromium now and then notes a stream that was read to its end as aborted all the same.)
   */
  async #drain(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
    let late: unknown;
    const patience = new Promise<void>((resolve) => (late = this.#clock.setTimeout(resolve, LAST)));
    const read = async (): Promise<void> => {
      while (!(await reader.read()).done);
      this.#complete = true;
    };
    await Promise.race([read().catch(() => undefined), patience]);
    this.#clock.clearTimeout(late);
  }

  #frame(name: string | undefined, id: string | undefined, data: string): TerminalEvent | null {
    const event = parseEvent(name, data);
    if (event?.event === "reset") {
      this.cursor = event.seq;
    } else {
      const seq = Number(id);
      if (!Number.isSafeInteger(seq) || seq < 1) return null;
      if (seq <= this.cursor) return null;
      if (seq !== this.cursor + 1) throw new Error(`event ${seq} after ${this.cursor}`);
      this.cursor = seq;
    }
    this.#attempt = 0;
    if (event === null) return null;
    if (event.event === "start") this.#known(event.run_id);
    try {
      this.#options.onEvent(event, this.cursor);
    } catch (error) {
      // The page's fault, not the connection's: asking again would not mend it.
      queueMicrotask(() => {
        throw error;
      });
    }
    return isTerminal(event) ? event : null;
  }

  #known(runId: string): void {
    if (this.runId === runId) return;
    this.runId = runId;
    this.#options.onRunId?.(runId);
  }

  #note(connection: Connection): void {
    this.#options.onConnection?.(connection);
  }

  async #pause(drop: Drop): Promise<void> {
    const chance = this.#clock.random();
    let delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempt) * (0.5 + chance / 2);
    // All readers of a leaving worker come back at once: spread them over a second, or over what the server asked for.
    if (drop.clean && this.#attempt === 0) delay = Math.min(1000, this.#retry) * chance;
    delay = Math.max(delay, drop.after * (1 + chance / 5));
    await new Promise<void>((resolve) => {
      const handle = this.#clock.setTimeout(resolve, delay);
      this.#wake = () => {
        this.#clock.clearTimeout(handle);
        resolve();
      };
    });
    this.#wake = null;
  }
}
