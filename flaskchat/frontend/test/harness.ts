import assert from "node:assert/strict";
import { Api } from "../src/api.ts";
import type { Entry } from "../src/conversation.ts";
import type { Conversation as ConversationData, Message } from "../src/protocol.ts";
import { Kept } from "../src/kept.ts";
import type { Place } from "../src/kept.ts";
import type { Queue } from "../src/queue.ts";
import { Session } from "../src/session.ts";

export const message = (id: string, parent: string | null, role: "user" | "assistant", text: string, more: Partial<Message> = {}): Message => ({
  id, parent_id: parent, role, text, status: "done", parts: [], ...more,
});
export const data = (messages: Message[], more: Partial<ConversationData> = {}): ConversationData => ({
  id: "c_1", title: "T", model: "m", current_leaf_id: messages.at(-1)?.id ?? null, messages, running: [], ...more,
});
export const frames = (list: [string, object][]): string =>
  list.map(([event, body], index) => `id: ${index + 1}\nevent: ${event}\ndata: ${JSON.stringify(body)}\n\n`).join("");
export const start = { run_id: "run_1", conversation_id: "c_1", message_id: "m_2", user_message_id: "m_1", model: "m", title: "T" };
export const sse = (list: [string, object][]): Response =>
  new Response(frames(list), { headers: { "Content-Type": "text/event-stream", "Flaskchat-Run-Id": "run_1" } });
export const json = (body: object, status = 200): Response =>
  new Response(JSON.stringify(body), { status, headers: { "Content-Type": status < 400 ? "application/json" : "application/problem+json" } });

export const memory = (): ((lasting: boolean) => Place) => {
  const map = new Map<string, string>();
  const place: Place = {
    getItem: (key) => map.get(key) ?? null,
    setItem: (key, value) => void map.set(key, value),
    removeItem: (key) => void map.delete(key),
  };
  return () => place;
};

/** A session over answers by "METHOD path"; each is used once, in order. */
export class Harness {
  readonly calls: { line: string; body: Record<string, unknown> | null }[] = [];
  readonly returned: string[] = [];
  readonly announced: string[] = [];
  readonly ids: string[] = [];
  /** How often the page was told that nobody is signed in. */
  signedOut = 0;
  readonly session: Session;

  constructor(answers: Record<string, (Response | Promise<Response>)[]>, place = memory()) {
    const fetch = async (url: string, init: RequestInit = {}): Promise<Response> => {
      const line = `${init.method ?? "GET"} ${url}`;
      this.calls.push({ line, body: init.body ? (JSON.parse(init.body as string) as Record<string, unknown>) : null });
      const answer = answers[line]?.shift();
      if (!answer) throw new TypeError("Failed to fetch");
      return answer;
    };
    this.session = new Session(
      new Api("/chat/", fetch),
      {
        onChange: () => undefined,
        onReturn: (text) => this.returned.push(text),
        onAnnounce: (words) => this.announced.push(words),
        onConversation: (id) => this.ids.push(id),
        onSignedOut: () => (this.signedOut += 1),
      },
      { kept: new Kept("/chat", place), clock: { setTimeout: (callback) => setTimeout(callback, 0), clearTimeout: (timer) => clearTimeout(timer as never), random: () => 0 } },
    );
  }

  get queue(): Queue {
    return this.session.conversation.queue;
  }

  get branch(): Entry[] {
    return this.session.conversation.branch;
  }

  async until(condition: () => boolean): Promise<void> {
    const end = Date.now() + 2000;
    while (!condition()) {
      assert.ok(Date.now() < end, "it did not come to that");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}
