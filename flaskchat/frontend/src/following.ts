/**
 * Which way a run is followed: on a connection of its own while this tab is the only one, else through `tabs.ts`, which
 * is loaded then. Tabs count each other by a shared lock that each holds as long as it shows the chat: the browser
 * gives it back even for a tab that has crashed.
 */

import type { Fetch } from "./api.ts";
import type { Tabs } from "./tabs.ts";

/**
 * Follow a run from the event after `after`.
 *
 * @param signal breaks it off; @param over is aborted when the stream is left, also at its own end.
 */
export type Follow = (runId: string, after: number, signal: AbortSignal, over?: AbortSignal) => Promise<Response>;

/** Why a stream is aborted when somebody wants to see what happens then. */
export const PLUG = "plug";

/** The longest a tab waits before it follows by itself where tabs cannot agree on one. Milliseconds. */
const SPREAD = 200;

export function request(fetch: Fetch, url: string, after: number, signal: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (after > 0) headers["Last-Event-ID"] = String(after);
  return fetch(url, { headers, signal, cache: "no-store", credentials: "same-origin" });
}

export interface FollowingOptions {
  endpoint: string;
  fetch: Fetch;
  eventsUrl: (runId: string) => string;
  /** Seconds between the server's heartbeats. */
  heartbeat: number;
}

export class Following {
  readonly #options: FollowingOptions;
  readonly #locks: LockManager | undefined = globalThis.navigator?.locks;
  readonly #name: string;
  #here: Promise<void> | null = null;
  #leave: (() => void) | null = null;
  #tabs: Promise<Tabs> | null = null;
  #closed = false;
  /** Streams of this tab that have a connection of their own. */
  #own = 0;

  constructor(options: FollowingOptions) {
    this.#options = options;
    this.#name = `flaskchat ${options.endpoint}/ tab`;
    this.#arrive();
    globalThis.addEventListener?.("pagehide", this.#leaves);
    globalThis.addEventListener?.("pageshow", this.#arrive);
  }

  close(): void {
    this.#closed = true;
    this.#leave?.();
    globalThis.removeEventListener?.("pagehide", this.#leaves);
    globalThis.removeEventListener?.("pageshow", this.#arrive);
    void this.#tabs?.then((tabs) => tabs.close());
  }

  readonly follow: Follow = async (runId, after, signal, over = signal) => {
    const { fetch, eventsUrl } = this.#options;
    if (await this.keep(over)) {
      if (!this.#locks) await new Promise((resolve) => setTimeout(resolve, Math.random() * SPREAD));
      signal.throwIfAborted();
      return request(fetch, eventsUrl(runId), after, signal);
    }
    this.#tabs ??= import("./tabs.ts").then(({ Tabs }) => new Tabs(this.#options));
    let tabs: Tabs;
    try {
      tabs = await this.#tabs;
    } catch {
      this.#tabs = null; // No connection, or a newer version is installed, which has no such file.
      return request(fetch, eventsUrl(runId), after, signal);
    }
    signal.throwIfAborted();
    return tabs.follow(runId, after, signal);
  };

  /** Whether a stream may have a connection of its own, until `over` is aborted: one of a tab that is alone. */
  readonly keep = async (over: AbortSignal): Promise<boolean> => {
    if (!this.#locks) return true;
    if (this.#own > 0) return false;
    this.#own += 1;
    const free = (): void => void (this.#own -= 1);
    let others = false;
    try {
      await this.#here;
      const { held = [] } = await this.#locks.query();
      others = held.filter(({ name }) => name === this.#name).length > 1;
    } catch {
      // No lock manager after all (a sandboxed frame): this tab goes by itself.
    }
    if (others || over.aborted) free();
    else over.addEventListener("abort", free, { once: true });
    return !others;
  };

  /** Once: the first `pageshow` comes after this tab has begun to count. */
  readonly #arrive = (): void => {
    if (!this.#locks || this.#leave || this.#closed) return;
    const left = new Promise<void>((leave) => (this.#leave = leave));
    this.#here = new Promise((resolve) => {
      const here = (): Promise<void> => {
        resolve();
        return left;
      };
      this.#locks!.request(this.#name, { mode: "shared" }, here).catch(() => resolve());
    });
  };

  /** A page that is kept for Back must not count. */
  readonly #leaves = (): void => {
    this.#leave?.();
    this.#leave = null;
  };
}
