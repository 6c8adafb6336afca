/**
 * What a reader of the page can do: open a conversation, ask, stop, ask again, go on. Holds the conversation and its
 * streams; no DOM. Whoever shows it is told by `onChange`.
 */

import type { Api } from "./api.ts";
import { Branches } from "./branches.ts";
import { Conversation } from "./conversation.ts";
import type { Entry } from "./conversation.ts";
import { Kept, PROMPT } from "./kept.ts";
import { newId, Problem } from "./protocol.ts";
import type { SendBody, Status } from "./protocol.ts";
import { Queue } from "./queue.ts";
import { Sending } from "./sending.ts";
import type { Follow } from "./following.ts";
import { REAL } from "./stream.ts";
import type { Clock } from "./stream.ts";
import { Streams } from "./streams.ts";
import type { Wire } from "./wire.ts";
import { Timing } from "./timing.ts";
import type { Times } from "./timing.ts";

export interface SessionEvents {
  /** Something other than a running reply's text changed. */
  onChange: () => void;
  /** Nobody is signed in any more. */
  onSignedOut?: () => void;
  /** A new conversation has its id. */
  onConversation?: (id: string) => void;
  /** A reply began or ended: the list of conversations looks different now. */
  onRun?: () => void;
  /** The server has taken a question. */
  onSent?: (ids: { conversation: string; message: string; run: string }) => void;
  /** A reply that was followed has ended. */
  onFinish?: (end: { conversation: string | null; message: string | null; run: string | null; status: Status }) => void;
  /** A reply that was asked for here began or ended, which no other tab can know. */
  onNews?: (conversation: string, run: string | null) => void;
  /** For a screen reader. */
  onAnnounce?: (words: string) => void;
  /** The user's text comes back: it was not accepted. */
  onReturn?: (text: string) => void;
}

export interface SessionOptions {
  heartbeat?: number;
  clock?: Clock;
  follow?: Follow;
  keep?: (over: AbortSignal) => Promise<boolean>;
  /** Where what came over the wire is kept. */
  wire?: Wire;
  kept?: Kept;
}

/** Whoever flicks through tabs does not ask each time. Milliseconds. */
const SOON = 2000;

export class Session {
  conversation: Conversation;
  /** The model to ask, where the reader picked one. */
  model: string | null = null;
  /** What went wrong outside any message: shown above the composer. */
  problem = "";
  loading = false;
  /** The conversation cannot be shown, and why. */
  failure = "";
  /** It is not there: another attempt would not find it either. */
  missing = false;
  /** Nobody is signed in, as the last answer said: until somebody is, the server does nothing for this page. */
  signedOut = false;
  readonly #api: Api;
  readonly #events: SessionEvents;
  readonly #options: SessionOptions;
  readonly #streams: Streams;
  #opening = 0;
  #id: string | null = null;
  /** When the conversation was opened or looked at last. */
  #looked = 0;
  readonly #kept: Kept;
  /** Requests that may have reached the server although no answer came: made again, they keep their ids. */
  readonly #unsent = new Map<string, string>();
  readonly #branches: Branches;

  constructor(api: Api, events: SessionEvents, options: SessionOptions = {}) {
    this.#api = api;
    this.#events = events;
    this.#options = options;
    api.answered = (status) => this.#answered(status);
    this.#branches = new Branches(api, options.clock ?? REAL, (words) => {
      this.problem = words;
      events.onChange();
    });
    this.#kept = options.kept ?? new Kept(api.endpoint);
    this.conversation = this.#empty(null);
    this.#streams = new Streams(api, events, options, this.#kept, {
      shown: () => this.conversation,
      reread: (conversation) => this.#reread(conversation),
      problem: (words) => (this.problem = words),
      pump: (conversation) => this.sending.pump(conversation),
    });
  }

  /** Somebody may have signed in again in another tab: then an answer says so. */
  #answered(status: number): void {
    const out = status === 401;
    if (out === this.signedOut || (!out && status >= 400)) return;
    this.signedOut = out;
    if (out) this.#events.onSignedOut?.();
    else this.problem = "";
    this.#events.onChange();
  }

  readonly sending = new Sending({
    shown: () => this.conversation,
    unread: () => this.loading || this.failure !== "",
    model: () => this.model,
    ask: (conversation, body, reply, hooks) => this.#streams.ask(conversation, body, reply, hooks),
    problem: (words) => (this.problem = words),
    returned: (text) => this.#events.onReturn?.(text),
    changed: () => this.#events.onChange(),
  });

  /** The reply that is being written in the branch shown. */
  get running(): Entry | null {
    return this.conversation.branch.findLast((entry) => entry.running) ?? null;
  }

  /** Show a conversation, or an empty one. Streams of the one that is left are closed; its runs go on. */
  async open(id: string | null): Promise<void> {
    const opening = ++this.#opening;
    this.sending.hold(null);
    this.#looked = Date.now();
    this.#id = id;
    this.#leave();
    const aside = [...this.sending.aside].find((each) => id !== null && each.id === id);
    this.conversation = aside ?? this.#empty(id);
    this.#options.wire?.clear();
    this.problem = this.failure = "";
    this.missing = false;
    this.loading = id !== null && !aside;
    this.#events.onChange();
    if (id === null) return this.sending.pump(this.conversation);
    try {
      const data = await this.#api.conversation(id);
      if (opening !== this.#opening) return;
      this.sending.aside.delete(this.conversation);
      this.loading = false;
      this.#read(this.conversation, data);
    } catch (error) {
      if (opening !== this.#opening) return;
      const problem = error instanceof Problem ? error : null;
      this.missing = problem?.status === 404;
      this.failure = this.missing
        ? "There is no such conversation, or it belongs to somebody else."
        : (problem?.message ?? "The conversation could not be loaded: no connection.");
    }
    this.loading = false;
    this.#events.onChange();
  }

  #empty(id: string | null): Conversation {
    const others = [...this.sending.aside].map(({ queue }) => queue);
    const conversation = new Conversation(new Queue(this.#kept, id, others));
    if (id === null) conversation.systemPrompt = this.#kept.read<string>(PROMPT, null) ?? "";
    return conversation;
  }

  /** A question that is not taken yet goes on being sent, and those that wait are sent when their time comes. */
  #leave(): void {
    const { conversation } = this;
    if (conversation.queue.items.length > 0 && conversation.branch.length > 0) {
      this.sending.aside.add(conversation);
      return;
    }
    this.#streams.leave(conversation.entries);
  }

  #read(conversation: Conversation, data: Parameters<Conversation["read"]>[0]): void {
    conversation.read(data, this.#streams.entries);
    const times = this.#kept.read<Record<string, Times>>("times", conversation.id) ?? {};
    for (const entry of conversation.entries) if (entry.id) entry.timing ??= Timing.of(times[entry.id]);
    this.#streams.resume(conversation, data.running);
    const { queue } = conversation;
    const after = queue.load();
    if (queue.after === undefined && after) queue.after = conversation.find(after);
    this.sending.pump(conversation);
  }

  /** @param parent what the question follows, where it is an edit of another. */
  send(text: string, parent?: Entry | null): void {
    this.sending.send(text, parent);
    if (this.conversation.queue.waiting.at(-1)?.text === text) this.#events.onAnnounce?.("Queued.");
  }

  /** Ask the same again: a sibling of the reply. */
  regenerate(entry: Entry): void {
    if (!entry.id) return;
    const { conversation } = this;
    const reply = conversation.add("assistant", entry.parent);
    reply.begin(true);
    const body: SendBody = { action: "regenerate", message_id: entry.id, request_id: newId() };
    if (this.model) body.model = this.model;
    this.#again(conversation, body, reply, () => conversation.drop([reply], entry));
  }

  /** Let a stopped or interrupted reply go on where it ended. */
  continue(entry: Entry): void {
    if (!entry.id) return;
    const { status, runId, words, closedIn, timing, usage } = entry;
    entry.begin();
    const body: SendBody = { action: "continue", message_id: entry.id, request_id: newId() };
    this.#again(this.conversation, body, entry, () => Object.assign(entry, { status, runId, words, closedIn, timing, usage }));
  }

  #again(conversation: Conversation, body: Exclude<SendBody, { action: "send" }>, reply: Entry, undo: () => void): void {
    const key = `${body.action} ${body.message_id} ${this.model}`;
    body.request_id = this.#unsent.get(key) ?? body.request_id;
    this.#unsent.delete(key);
    this.problem = "";
    this.#streams.ask(conversation, body, reply, {
      onKnown: (known) => {
        undo();
        conversation.show(known);
      },
      onRefused: (problem) => {
        undo();
        if (!problem) this.#unsent.set(key, body.request_id);
        if (problem !== null) this.problem = problem?.message ?? "Not sent: no connection. Try it again.";
      },
    });
  }

  /** What the model is told first. A new conversation says it with its first message. */
  prompt(text: string): void {
    this.conversation.systemPrompt = text;
    if (this.conversation.id === null) this.#kept.write(PROMPT, null, text || null);
  }

  /** Show the branch in which a message is. @returns it, if it is in this conversation. */
  reveal(message: string): Entry | null {
    const entry = this.conversation.find(message) ?? null;
    if (entry && !this.conversation.branch.includes(entry)) this.conversation.show(entry);
    this.#events.onChange();
    return entry;
  }

  /** Show the message before or after this one in its place. */
  walk(entry: Entry, step: 1 | -1): Entry {
    const next = this.#branches.walk(this.conversation, entry, step);
    this.#events.onChange();
    return next;
  }

  /** Stop the reply, also before the server has named its run. */
  stop(entry: Entry): void {
    this.#streams.stop(entry);
  }

  /** What the browser thinks of its network. */
  set offline(offline: boolean) {
    this.#streams.offline = offline;
    if (!offline) this.wake();
  }

  /** The page is looked at again, or the network is back: do not wait any longer, and show what was missed. */
  wake(): void {
    this.#streams.wake();
    if (this.failure && !this.missing) return void this.open(this.#id);
    const { id } = this.conversation;
    const now = Date.now();
    if (id === null || this.running || Math.abs(now - this.#looked) < SOON) return;
    this.#looked = now;
    this.heard(id, null);
  }

  /** Break the connections off, to see what happens then. @returns how many there were. */
  plug(): number {
    return this.#streams.plug();
  }

  /** Another tab has begun or ended a reply, or changed something: if it is of the conversation on this page, show it. */
  heard(conversation: string, run: string | null): void {
    const { id, entries } = this.conversation;
    if (id !== conversation || this.loading || (run !== null && entries.some((entry) => entry.runId === run))) return;
    void this.#reread(this.conversation).then((done) => {
      if (!done) this.#looked = 0; // the network may be back in a moment
      this.#events.onChange();
    });
  }

  /** Follow nothing any more. The runs go on. */
  close(): void {
    this.sending.closed = true;
    this.#streams.leave(this.#streams.entries);
  }

  async #reread(conversation: Conversation): Promise<boolean> {
    if (conversation.id === null) return true;
    try {
      const data = await this.#api.conversation(conversation.id);
      if (this.conversation === conversation || this.sending.aside.has(conversation)) this.#read(conversation, data);
      return true;
    } catch {
      return false;
    }
  }
}
