/**
 * Many tabs, few connections. A browser opens six HTTP/1.1 connections to a server, for all its tabs together; the seventh
 * stream would wait for ever, and with it every other request. So one tab holds the connections, and the others listen.
 *
 * Deliberate choices:
 *
 *  1. What passes between tabs is what came over the wire: whole frames, as they are. A tab reads them as the answer to
 *     a request of its own, so that drops, cursors, doubles, gaps, silence and words are all in one place, `stream.ts`.
 *  2. The tab that leads is the one that has an exclusive Web Lock: there is one, and when it closes or crashes the browser
 *     gives the lock to the next. One that is frozen gives it back; from one that answers nobody for 3 s it is taken.
 *  3. Nothing is kept for those who come later: a tab that is behind asks from its cursor, and the connection begins
 *     again there. The log has everything. So a new leader needs to know nothing: it asks who wants what.
 *  4. A run has one connection at most, and three runs have one at a time. With more, each gets its turn for 0.4 s and
 *     goes on from its last id: a reply then grows in steps, about one a second with ten, but every one of them lives.
 *  5. A tab that asks hands its stream over as soon as the run has a name: a POST is held for its first bytes only. The
 *     one exception is a tab that was alone when it asked: it keeps the stream it has, and pays for no second request.
 *     So there are four streams at most, which leaves two connections for everything else. An idle tab has none.
 *  6. The server alone says whose a run is: the leader asks with the browser's cookie of the moment, and a 404 ends the run for all.
 *  7. Without Web Locks (a page that came over HTTP from another host has none) each tab follows by itself.
 */

import { PLUG } from "./following.ts";
import type { Follow, FollowingOptions } from "./following.ts";
import { cursorAfter, Lines } from "./lines.ts";
import type { Frame, Note } from "./lines.ts";
import { newId } from "./protocol.ts";

/** What tabs say to each other. The number in the channel's name changes with this. */
type Message =
  | { kind: "lead" }
  | { kind: "here"; runs: string[] }
  | { kind: "want"; from: string; run: string; after: number }
  | { kind: "ping"; from: string }
  | { kind: "drop"; from: string; run: string; cut: boolean }
  | Note;

/** How often a listening tab asks whether the leader is there, and how long it waits for the answer. Milliseconds. */
const TICK = 1000;
const PATIENCE = 3000;

interface Reader {
  run: string;
  after: number;
  /** When it asked for what it misses. */
  asked: number;
  resolve: ((response: Response) => void) | null;
  reject: (error: Error) => void;
  body: ReadableStreamDefaultController<Uint8Array> | null;
}

export interface TabsOptions extends FollowingOptions {
  locks?: LockManager;
  channel?: (name: string) => BroadcastChannel;
}

export class Tabs {
  readonly #options: TabsOptions;
  readonly #locks: LockManager;
  readonly #name: string;
  readonly #me = newId();
  readonly #readers = new Set<Reader>();
  readonly #encoder = new TextEncoder();
  #channel: BroadcastChannel | null = null;
  #lines: Lines | null = null;
  /** Gives the lock back. */
  #release: (() => void) | null = null;
  /** Takes the request for the lock back. */
  #turn: AbortController | null = null;
  #timer: ReturnType<typeof setInterval> | undefined;
  #ticked = 0;
  /** Since when the leader owes an answer; 0 when it does not. */
  #owed = 0;

  constructor(options: TabsOptions) {
    this.#options = options;
    this.#locks = options.locks ?? navigator.locks;
    this.#name = `flaskchat/1 ${options.endpoint}/ lead`;
    for (const [target, type, listener] of this.#listeners) target?.addEventListener(type, listener);
  }

  get leading(): boolean {
    return this.#lines !== null;
  }

  close(): void {
    this.#rest();
    for (const [target, type, listener] of this.#listeners) target?.removeEventListener(type, listener);
  }

  /** A page that is put to sleep holds nothing; when it wakes, it asks for what it misses. */
  readonly #rest = (): void => {
    for (const { run } of this.#readers) this.#post({ kind: "drop", from: this.#me, run, cut: false });
    this.#turn?.abort();
    this.#resign();
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#channel?.close();
    this.#channel = null;
  };

  readonly #awake = (): void => {
    if (this.#readers.size === 0) return;
    this.#join();
    for (const reader of this.#readers) this.#want(reader);
  };

  readonly #listeners: [EventTarget | undefined, string, () => void][] = [
    [globalThis.document, "freeze", this.#rest],
    [globalThis.document, "resume", this.#awake],
    [globalThis.window, "pagehide", this.#rest],
    [globalThis.window, "pageshow", this.#awake],
  ];

  readonly follow: Follow = (run, after, signal) =>
    new Promise((resolve, reject) => {
      const reader: Reader = { run, after, asked: 0, resolve, reject, body: null };
      this.#readers.add(reader);
      signal.addEventListener(
        "abort",
        () => {
          const error = new DOMException("The stream was aborted.", "AbortError");
          if (!this.#readers.delete(reader)) return;
          this.#fail(reader, error);
          const cut = signal.reason === PLUG;
          if (cut || ![...this.#readers].some((each) => each.run === run)) this.#drop(run, cut);
          if (this.#readers.size === 0) this.#idle();
        },
        { once: true },
      );
      this.#join();
      this.#want(reader);
    });

  #join(): void {
    if (!this.#channel) {
      const { channel = (name) => new BroadcastChannel(name) } = this.#options;
      this.#channel = channel(this.#name);
      this.#channel.onmessage = ({ data }: MessageEvent<unknown>) => {
        if (isMessage(data)) this.#take(data);
      };
    }
    if (!this.#turn && !this.#release) this.#compete(false);
    if (this.#timer === undefined) {
      this.#ticked = performance.now();
      this.#timer = setInterval(this.#tick, TICK);
    }
  }

  /** With nothing to read, a tab that does not lead asks nobody and waits for nothing. */
  #idle(): void {
    if (this.#lines) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#owed = 0;
    this.#turn?.abort();
  }

  /** Ask for the lock, or take it from a tab that does not answer. */
  #compete(steal: boolean): void {
    this.#turn?.abort();
    const turn = (this.#turn = new AbortController());
    this.#locks
      .request(this.#name, steal ? { steal } : { signal: turn.signal }, () => {
        if (turn.signal.aborted || this.#turn !== turn) return undefined;
        return new Promise<void>((release) => {
          this.#release = release;
          this.#lead();
        });
      })
      .catch(() => undefined) // Taken back, or taken from us.
      .then(() => {
        if (this.#turn !== turn) return;
        this.#turn = null;
        this.#resign();
        if (this.#readers.size === 0 || !this.#channel) return;
        this.#compete(false);
        for (const reader of this.#readers) this.#want(reader);
      });
  }

  #lead(): void {
    const { fetch, eventsUrl, heartbeat } = this.#options;
    this.#owed = 0;
    const lines: Lines = new Lines({
      fetch,
      eventsUrl,
      heartbeat,
      send: (note) => {
        // A note of a run that no other tab reads stays here. Nobody wants it any more once its stream is over.
        if (note.kind === "end" || lines.shared(note.run, this.#me)) this.#post(note);
        this.#read(note);
      },
    });
    this.#lines = lines;
    this.#post({ kind: "lead" });
    for (const reader of this.#readers) this.#want(reader);
  }

  #resign(): void {
    this.#lines?.close();
    this.#lines = null;
    this.#release?.();
    this.#release = null;
  }

  #post(message: Message): void {
    this.#channel?.postMessage(message);
  }

  #want(reader: Reader): void {
    const { run, after } = reader;
    reader.asked = performance.now();
    if (this.#lines) return this.#lines.want(this.#me, run, after);
    this.#owed ||= reader.asked;
    this.#post({ kind: "want", from: this.#me, run, after });
  }

  #drop(run: string, cut: boolean): void {
    if (!this.#lines) return this.#post({ kind: "drop", from: this.#me, run, cut });
    this.#lines.drop(this.#me, run);
    if (cut) this.#lines.cut(run);
  }

  readonly #tick = (): void => {
    const now = performance.now();
    const slept = now - this.#ticked > 2 * TICK;
    this.#ticked = now;
    if (this.#lines) {
      this.#lines.alive(this.#me);
      if (this.#readers.size > 0 || this.#lines.runs.length > 0) return;
      this.#resign();
      return this.#idle();
    }
    // Answers that came while this tab slept are still on their way to it.
    if (slept && this.#owed > 0) this.#owed = now;
    if (this.#owed > 0 && now - this.#owed > PATIENCE) {
      this.#owed = now;
      this.#compete(true);
      return;
    }
    this.#owed ||= now;
    this.#post({ kind: "ping", from: this.#me });
  };

  #take(message: Message): void {
    const lines = this.#lines;
    switch (message.kind) {
      case "want":
        lines?.want(message.from, message.run, message.after);
        if (lines) this.#post({ kind: "here", runs: lines.runs });
        return;
      case "ping":
        lines?.alive(message.from);
        if (lines) this.#post({ kind: "here", runs: lines.runs });
        return;
      case "drop":
        lines?.drop(message.from, message.run);
        if (message.cut) lines?.cut(message.run);
        return;
      case "lead":
        this.#owed = 0;
        this.#resign(); // If the lock was taken from us, we hear of it here first.
        for (const reader of this.#readers) this.#want(reader);
        return;
      case "here":
        this.#owed = 0;
        for (const reader of this.#readers) {
          if (!message.runs.includes(reader.run) && performance.now() - reader.asked > TICK) this.#want(reader);
        }
        return;
      default:
        // A tab that leads hears another for the moment in which the lock changes hands.
        if (!lines) this.#read(message);
    }
  }

  #read(note: Note): void {
    this.#owed = 0;
    for (const reader of [...this.#readers]) {
      if (reader.run !== note.run) continue;
      if (note.kind === "end") this.#end(reader, note);
      else this.#feed(reader, note.kind === "data" ? note.frames : []);
    }
  }

  #feed(reader: Reader, frames: Frame[]): void {
    let text = "";
    for (const frame of frames) {
      const [seq] = frame;
      if (seq > 0 && seq <= reader.after) continue;
      if (seq > reader.after + 1) {
        // Something was missed. What was asked for a moment ago is on its way.
        if (performance.now() - reader.asked > TICK) this.#want(reader);
        break;
      }
      reader.after = cursorAfter(frame, reader.after);
      text += frame[1];
    }
    if (reader.resolve) {
      const body = new ReadableStream<Uint8Array>({ start: (controller) => void (reader.body = controller) });
      const headers = { "Content-Type": "text/event-stream; charset=utf-8", "Flaskchat-Run-Id": reader.run };
      reader.resolve(new Response(body, { headers }));
      reader.resolve = null;
    }
    // An empty piece says that the server has been heard.
    reader.body?.enqueue(this.#encoder.encode(text));
  }

  #end(reader: Reader, { status, headers, body }: Note & { kind: "end" }): void {
    this.#readers.delete(reader);
    const over = status === 204 || (status === 200 && headers.length === 0);
    if (reader.resolve) {
      if (status === 0 || (over && status === 200)) this.#fail(reader, new TypeError("The connection failed."));
      else reader.resolve(new Response(status === 204 ? null : body, { status, headers }));
    } else if (over) {
      reader.body?.close();
    } else {
      this.#fail(reader, new TypeError("The connection failed."));
    }
    if (this.#readers.size === 0) this.#idle();
  }

  #fail(reader: Reader, error: Error): void {
    if (reader.resolve) reader.reject(error);
    else reader.body?.error(error);
    reader.resolve = null;
  }
}

const FIELDS: Record<string, Record<string, (value: unknown) => boolean>> = {
  lead: {},
  here: { runs: Array.isArray },
  want: { from: isText, run: isText, after: isCount },
  ping: { from: isText },
  drop: { from: isText, run: isText },
  open: { run: isText },
  data: { run: isText, frames: (value) => Array.isArray(value) && value.every(isFrame) },
  end: { run: isText, status: isCount, headers: Array.isArray, body: isText },
};

function isText(value: unknown): value is string {
  return typeof value === "string";
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isFrame(value: unknown): boolean {
  return Array.isArray(value) && isCount(value[0]) && isText(value[1]);
}

/** Anything of this origin can write to the channel. */
export function isMessage(data: unknown): data is Message {
  if (typeof data !== "object" || data === null) return false;
  const message = data as Record<string, unknown>;
  const kind = message["kind"];
  if (!isText(kind) || !Object.hasOwn(FIELDS, kind)) return false;
  return Object.entries(FIELDS[kind]!).every(([name, fits]) => fits(message[name]));
}
