/**
 * The calls that answer at once. Streams are `stream.ts`. Knows the paths of the contract; no DOM.
 */

import { Kept } from "./kept.ts";
import { problemOf } from "./protocol.ts";
import type { Change, Conversation, ConversationItem, Model, Page, Stopped } from "./protocol.ts";

export type Fetch = (input: string, init?: RequestInit) => Promise<Response>;

/** How long the first request of a page may hold up the others. Milliseconds. */
const PATIENCE = 3000;

export class Api {
  /**
   * The page's first request. A new visitor is given a cookie by the answer to it, and one more by each answer to a
   * request without one; the last would win, and what belongs to another would be lost. So the others wait for it.
   */
  static #first: Promise<unknown> | null = null;

  readonly endpoint: string;
  /** Told of each conversation that was changed or deleted by this page. */
  changed: (id: string) => void = () => undefined;
  /** Told the status of each answer. */
  answered: (status: number) => void = () => undefined;
  readonly #fetch: Fetch;

  /** @param endpoint the path under which the chat is mounted, without a slash at its end; "" for the root. */
  constructor(endpoint: string, fetchFunction: Fetch = (input, init) => fetch(input, init)) {
    this.endpoint = endpoint.replace(/\/+$/, "");
    this.#fetch = fetchFunction;
  }

  readonly fetch: Fetch = async (input, init) => {
    const ask = async (): Promise<Response> => {
      const response = await this.#fetch(input, init);
      this.answered(response.status);
      return response;
    };
    if (Api.#first === null) {
      const answer = ask();
      Api.#first = Promise.race([answer.catch(() => null), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
      return answer;
    }
    await Api.#first;
    init?.signal?.throwIfAborted();
    return ask();
  };

  url(path: string): string {
    return this.endpoint + path;
  }

  eventsUrl(runId: string): string {
    return this.url(`/runs/${encodeURIComponent(runId)}/events`);
  }

  /** @param q words to look for in titles and texts. */
  conversations(cursor?: string | null, q = "", signal?: AbortSignal): Promise<Page<ConversationItem>> {
    const query = new URLSearchParams({ limit: "30" });
    if (cursor) query.set("cursor", cursor);
    if (q) query.set("q", q);
    return this.#json("GET", `/conversations?${query}`, undefined, signal);
  }

  conversation(id: string): Promise<Conversation> {
    return this.#json("GET", `/conversations/${encodeURIComponent(id)}`);
  }

  async change(id: string, change: Change): Promise<Conversation> {
    const conversation = await this.#json<Conversation>("PATCH", `/conversations/${encodeURIComponent(id)}`, change);
    this.changed(id);
    return conversation;
  }

  /** @param leaving the page goes away: the request has to outlive it, and can wait for nothing. */
  async remove(id: string, leaving = false): Promise<void> {
    const send = leaving ? this.#fetch : this.fetch;
    const path = `/conversations/${encodeURIComponent(id)}`;
    if (leaving) new Kept(this.endpoint).forget(id);
    const response = await send(this.url(path), { method: "DELETE", credentials: "same-origin", keepalive: leaving });
    // One that is gone already is what was wanted.
    if (!response.ok && response.status !== 404) throw await problemOf(response);
    new Kept(this.endpoint).forget(id);
    this.changed(id);
  }

  exportUrl(id: string, format: "json" | "markdown"): string {
    return this.url(`/conversations/${encodeURIComponent(id)}/export?format=${format}`);
  }

  async models(): Promise<Model[]> {
    return (await this.#json<{ items: Model[] }>("GET", "/models")).items;
  }

  stop(runId: string): Promise<Stopped> {
    return this.#json("POST", `/runs/${encodeURIComponent(runId)}/stop`, {});
  }

  async #json<T>(method: string, path: string, body?: object, signal?: AbortSignal): Promise<T> {
    const headers: Record<string, string> = { Accept: "application/json" };
    const init: RequestInit = { method, headers, credentials: "same-origin" };
    if (body) {
      headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(body);
    }
    if (signal) init.signal = signal;
    const response = await this.fetch(this.url(path), init);
    if (!response.ok) throw await problemOf(response);
    return (await response.json()) as T;
  }
}
