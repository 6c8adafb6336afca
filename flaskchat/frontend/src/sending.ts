/**
 * Sending questions: at once, or when the reply before them has ended; again, where the server could not be reached.
 * Decides when and where each goes; what waits is `queue.ts`, and how it is followed is the session's. No DOM.
 */

import type { Conversation, Entry } from "./conversation.ts";
import { newId } from "./protocol.ts";
import type { Problem, SendBody } from "./protocol.ts";
import type { Item } from "./queue.ts";

/** What happens to a request. */
export interface Hooks {
  onStart?: (userMessageId: string) => void;
  /** The reply is one that the conversation has. */
  onKnown?: (known: Entry) => void;
  known?: boolean;
  /** @param problem null: taken back before it was sent; undefined: no answer. */
  onRefused?: (problem: Problem | null | undefined) => void;
}

export interface Desk {
  shown: () => Conversation;
  /** Whether that one is not read yet, or could not be: where a question goes in it is not known. */
  unread: () => boolean;
  model: () => string | null;
  ask: (conversation: Conversation, body: SendBody, reply: Entry, hooks: Hooks) => void;
  problem: (words: string) => void;
  /** The user's text comes back: it was not accepted. */
  returned: (text: string) => void;
  changed: () => void;
}

export class Sending {
  /** Conversations that were left while messages of theirs wait to be sent. */
  readonly aside = new Set<Conversation>();
  closed = false;
  readonly #desk: Desk;
  /** The waiting message that its writer is changing. */
  #editing: string | null = null;
  /** Texts that were taken back but may have reached the server: sent again, they keep their ids. */
  readonly #unsent = new Map<string, string>();

  constructor(desk: Desk) {
    this.#desk = desk;
  }

  /** Another tab has changed what waits to be sent. */
  stored(key: string | null): void {
    const { queue } = this.#desk.shown();
    if (!queue.owns(key)) return;
    queue.load();
    this.#desk.changed();
  }

  /**
   * Ask. The question and an empty reply are shown at once, unless a reply has to end first.
   *
   * @param parent what the question follows, where it is an edit of another.
   */
  send(text: string, parent?: Entry | null): void {
    const conversation = this.#desk.shown();
    const { queue, leaf } = conversation;
    const key = `send ${conversation.id} ${text}`;
    const item: Item = { id: this.#unsent.get(key) ?? newId(), text };
    this.#unsent.delete(key);
    this.#desk.problem("");
    const chain = queue.waiting.some((each) => each.parent === undefined);
    if (parent !== undefined) item.parent = parent?.id ?? null;
    else if (chain && queue.after && !conversation.branch.includes(queue.after)) item.parent = leaf?.id ?? null;
    else if (chain) queue.retry();
    else queue.after = leaf;
    if (chain ? item.parent === undefined : conversation.busy(this.#place(conversation, item))) item.queued = true;
    queue.add(item);
    this.pump(conversation);
    this.#desk.changed();
  }

  /**
   * A message that waits is being changed, in the conversation shown: neither it nor what follows it is sent here.
   *
   * @param id null: none any more.
   */
  hold(id: string | null): void {
    const held = this.#editing;
    this.#editing = id;
    if (held !== null) this.pump(this.#desk.shown());
  }

  /** A message that waits: another text for it. */
  edit(item: Item, text: string): void {
    const { queue } = this.#desk.shown();
    queue.load();
    if (!queue.get(item.id)) return this.send(text); // Another tab has sent it as it was.
    queue.edit(item.id, text);
    this.pump(this.#desk.shown());
    this.#desk.changed();
  }

  withdraw(item: Item): void {
    this.#desk.shown().queue.remove(item.id);
    this.pump(this.#desk.shown());
    this.#desk.changed();
  }

  /** Send what could not be sent, or was held back. */
  retry(item: Item): void {
    const { queue } = this.#desk.shown();
    queue.retry();
    queue.put(item.id, { queued: false });
    this.pump(this.#desk.shown());
    this.#desk.changed();
  }

  /** Why a message waits, in one word. */
  waits(item: Item): "failed" | "held" | "behind" | "queued" {
    const conversation = this.#desk.shown();
    if (item.why) return "failed";
    const first = conversation.queue.waiting.find((each) => each.parent === undefined);
    if (item.parent === undefined && first && first.id !== item.id) return "behind";
    return item.queued && held(this.#place(conversation, item)) ? "held" : "queued";
  }

  /** What a message follows. */
  #place(conversation: Conversation, item: Item): Entry | null {
    const { queue, leaf, branch } = conversation;
    if (item.parent !== undefined) return item.parent === null ? null : (conversation.find(item.parent) ?? leaf);
    return queue.after === undefined || (queue.after && branch.includes(queue.after)) ? leaf : queue.after;
  }

  /** Send what can be sent now: each after the one before it, edits by themselves. */
  pump(conversation: Conversation): void {
    if (this.closed || (this.#desk.unread() && conversation === this.#desk.shown())) return;
    const { queue } = conversation;
    queue.load();
    let chained = queue.items.some((item) => item.parent === undefined && queue.flying.has(item.id));
    for (const item of queue.waiting) {
      const chain = item.parent === undefined;
      if (chain && chained) continue;
      chained ||= chain;
      if (item.id === this.#editing) continue;
      const parent = this.#place(conversation, item);
      if (item.why || (!item.body && (conversation.busy(parent) || (item.queued && held(parent))))) continue;
      this.#post(conversation, item, parent);
    }
    if (queue.items.length === 0) this.aside.delete(conversation);
  }

  #post(conversation: Conversation, item: Item, place: Entry | null): void {
    const { queue, leaf } = conversation;
    let body = item.body;
    if (!body) {
      body = { action: "send", message: { id: item.id, text: item.text } };
      if (conversation.id) body.conversation_id = conversation.id;
      if (place?.id) body.parent_id = place.id;
      else if (conversation.id) body.parent_id = null;
      if (!conversation.id && conversation.systemPrompt) body.system_prompt = conversation.systemPrompt;
      const model = this.#desk.model();
      if (model) body.model = model;
    }
    const before = body.action === "send" ? body.parent_id : undefined;
    const parent = item.body ? (before ? (conversation.find(before) ?? null) : null) : place;
    queue.flying.add(item.id);
    queue.put(item.id, { body });
    const shown = parent === leaf || parent === null || conversation.branch.includes(parent);
    const question = conversation.add("user", parent, item.text);
    const reply = conversation.add("assistant", question);
    if (!shown) conversation.leaf = leaf;
    if (item.parent === undefined) queue.after = reply;
    reply.begin(!item.body);
    const back = (): void => {
      conversation.drop([question, reply], leaf);
      queue.flying.delete(item.id);
      if (queue.after === reply) queue.after = parent;
    };
    this.#desk.ask(conversation, body, reply, {
      onStart: (userMessageId) => {
        question.id = userMessageId;
        queue.remove(item.id);
        queue.flying.delete(item.id);
      },
      onKnown: (known) => {
        back();
        queue.remove(item.id);
        conversation.show(known);
      },
      onRefused: (problem) => {
        back();
        this.#refused(conversation, item, problem);
      },
    });
  }

  /** The server has not taken a message. @param problem null: taken back, undefined: no answer. */
  #refused(conversation: Conversation, item: Item, problem: Problem | null | undefined): void {
    const { queue } = conversation;
    const here = this.#desk.shown() === conversation;
    if (problem === undefined) {
      queue.put(item.id, { why: "Not sent: no connection." });
    } else if (problem?.code === "run_in_progress") {
      queue.thaw(item.id);
    } else if (problem?.code === "idempotency_conflict") {
      queue.remove(item.id); // Another tab has sent it.
    } else if (problem && (problem.status === 429 || problem.status >= 500 || item.parent !== undefined || !here)) {
      queue.put(item.id, { why: `Not sent: ${problem.message}` });
    } else {
      queue.remove(item.id);
      if (problem) this.#desk.problem(problem.message);
      else this.#unsent.set(`send ${conversation.id} ${item.text}`, item.id);
      this.#desk.returned(item.text);
    }
    if (here || conversation.id !== null) return;
    // What a new conversation could not send is shown in the next one.
    this.aside.delete(conversation);
    this.#desk.shown().queue.adopt(queue);
  }
}

/** Whether what waits for this reply needs its writer's decision: it did not come to its end. */
function held(parent: Entry | null): boolean {
  return parent?.status === "error" || parent?.status === "interrupted";
}
