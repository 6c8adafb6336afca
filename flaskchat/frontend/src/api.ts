/**
 * The calls that answer at once. Streams are `stream.ts`. Knows the paths of the contract; no DOM.
 */

import { problemOf } from "./protocol.ts";
import type { Conversation, ConversationItem, Model, Page, Stopped } from "./protocol.ts";

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
  readonly #fetch: Fetch;

  /** @param endpoint the path under which the chat is mounted, without a slash at its end; "" for the root. */
  constructor(endpoint: string, fetchFunction: Fetch = (input, init) => fetch(input, init)) {
    this.endpoint = endpoint.replace(/\/+$/, "");
    this.#fetch = fetchFunction;
  }

  readonly fetch: Fetch = async (input, init) => {
    if (Api.#first === null) {
      const answer = this.#fetch(input, init);
      Api.#first = Promise.race([answer.catch(() => null), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
      return answer;
    }
    await Api.#first;
    init?.signal?.throwIfAborted();
    return this.#fetch(input, init);
  };

  url(path: string): string {
    return this.endpoint + path;
  }

  eventsUrl(runId: string): string {
    return this.url(`/runs/${encodeURIComponent(runId)}/events`);
  }

  conversations(cursor?: string | null, limit = 30): Promise<Page<ConversationItem>> {
    const query = new URLSearchParams({ limit: String(limit) });
    if (cursor) query.set("cursor", cursor);
    return this.#json("GET", `/conversations?${query}`);
  }

  conversation(id: string): Promise<Conversation> {
    return this.#json("GET", `/conversations/${encodeURIComponent(id)}`);
  }

  async models(): Promise<Model[]> {
    return (await this.#json<{ items: Model[] }>("GET", "/models")).items;
  }

  stop(runId: string): Promise<Stopped> {
    return this.#json("POST", `/runs/${encodeURIComponent(runId)}/stop`, {});
  }

  async #json<T>(method: string, path: string, body?: object): Promise<T> {
    const headers: Record<string, string> = { Accept: "application/json" };
    const init: RequestInit = { method, headers, credentials: "same-origin" };
    if (body) {
      headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(body);
    }
    const response = await this.fetch(this.url(path), init);
    if (!response.ok) throw await problemOf(response);
    return (await response.json()) as T;
  }
}
