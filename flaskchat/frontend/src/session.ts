/**
 * What a reader of the page can do: open a conversation, ask, stop, ask again, go on. Holds the conversation and its
 * streams; no DOM. Whoever shows it is told by `onChange`.
 */

import type { Api } from "./api.ts";
import { Branches } from "./branches.ts";
import { Conversation } from "./conversation.ts";
import type { Entry } from "./conversation.ts";
import { Kept } from "./kept.ts";
import { newId, Problem } from "./protocol.ts";
import type { RunEvent, SendBody, Status } from "./protocol.ts";
import { Queue } from "./queue.ts";
import { Sending } from "./sending.ts";
import type { Hooks } from "./sending.ts";
import type { Follow } from "./following.ts";
import { RunStream } from "./stream.ts";
import type { Clock, Outcome } from "./stream.ts";
import type { Wire } from "./wire.ts";
import { Timing } from "./timing.ts";
import type { Times } from "./timing.ts";
import { endAnnouncement } from "./words.ts";

export interface SessionEvents {
  /** Something other than a running reply's text changed. */
  onChange: () => void;
  /** A new conversation has its id. */
  onConversation?: (id: string) => void;
  /** A reply began or ended: the list of conversations looks different now. */
  onRun?: () => void;
  /** The server has taken a question. */
  onSent?: (ids: { conversation: string; message: string; run: string }) => void;
  /** A reply that was followed has ended. */
  onFinish?: (end: { conversation: string | null; message: string | null; run: string | null; status: Status }) => void;
  /** For a screen reader. */
  onAnnounce?: (words: string) => void;
  /** The user's text comes back: it was not accepted. */
  onReturn?: (text: string) => void;
}

export interface SessionOptions {
  heartbeat?: number;
  clock?: Clock;
  follow?: Follow;
  keep?: (signal: AbortSignal) => Promise<boolean>;
  /** Where what came over the wire is kept. */
  wire?: Wire;
  kept?: Kept;
}

const STOP_ATTEMPTS = 4;

export class Session {
  conversation: Conversation;
  /** The model to ask, where the reader picked one. */
  model: string | null = null;
  /** What went wrong outside any message: shown above the composer. */
  problem = "";
  loading = false;
  /** The conversation cannot be shown, and why. */
  failure = "";
  readonly #api: Api;
  readonly #events: SessionEvents;
  readonly #options: SessionOptions;
  readonly #streams = new Map<Entry, RunStream>();
  #offline = false;
  #opening = 0;
  readonly #kept: Kept;
  /** Requests that may have reached the server although no answer came: made again, they keep their ids. */
  readonly #unsent = new Map<string, string>();
  readonly #branches: Branches;

  constructor(api: Api, events: SessionEvents, options: SessionOptions = {}) {
    this.#api = api;
    this.#events = events;
    this.#options = options;
    this.#branches = new Branches(api);
    this.#kept = options.kept ?? new Kept(api.endpoint);
    this.conversation = this.#empty(null);
  }

  readonly sending = new Sending({
    shown: () => this.conversation,
    loading: () => this.loading,
    model: () => this.model,
    ask: (conversation, body, reply, hooks) => void this.#ask(conversation, body, reply, hooks),
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
    this.#leave();
    const aside = [...this.sending.aside].find((each) => id !== null && each.id === id);
    this.conversation = aside ?? this.#empty(id);
    this.#options.wire?.clear();
    this.problem = this.failure = "";
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
      if (error instanceof Problem && error.status === 404) this.#kept.forget(id);
      this.failure =
        error instanceof Problem
          ? error.status === 404
            ? "There is no such conversation, or it belongs to somebody else."
            : error.message
          : "The conversation could not be loaded: no connection.";
    }
    this.loading = false;
    this.#events.onChange();
  }

  #empty(id: string | null): Conversation {
    const conversation = new Conversation(new Queue(this.#kept, id));
    // What another new conversation is still sending is not this one's.
    for (const { queue } of id === null ? this.sending.aside : []) for (const each of queue.flying) conversation.queue.flying.add(each);
    return conversation;
  }

  /** A question that is not taken yet goes on being sent, and those that wait are sent when their time comes. */
  #leave(): void {
    const { conversation } = this;
    if (conversation.queue.items.length > 0 && conversation.branch.length > 0) {
      this.sending.aside.add(conversation);
      return;
    }
    for (const entry of conversation.entries) {
      this.#streams.get(entry)?.close();
      this.#streams.delete(entry);
    }
  }

  #read(conversation: Conversation, data: Parameters<Conversation["read"]>[0]): void {
    conversation.read(data, new Set(this.#streams.keys()));
    const times = this.#kept.read<Record<string, Times>>("times", conversation.id) ?? {};
    for (const entry of conversation.entries) if (entry.id) entry.timing ??= Timing.of(times[entry.id]);
    this.#followAll(conversation, data.running);
    const { queue } = conversation;
    const after = queue.load();
    if (queue.after === undefined && after) queue.after = conversation.find(after);
    this.sending.pump(conversation);
  }

  /** @param parent what the question follows, where it is an edit of another. */
  send(text: string, parent?: Entry | null): void {
    this.sending.send(text, parent);
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
    const { status, words, closedIn, timing, usage } = entry;
    entry.begin();
    const body: SendBody = { action: "continue", message_id: entry.id, request_id: newId() };
    this.#again(this.conversation, body, entry, () => Object.assign(entry, { status, words, closedIn, timing, usage }));
  }

  #again(conversation: Conversation, body: Exclude<SendBody, { action: "send" }>, reply: Entry, undo: () => void): void {
    const key = `${body.action} ${body.message_id} ${this.model}`;
    body.request_id = this.#unsent.get(key) ?? body.request_id;
    this.#unsent.delete(key);
    this.problem = "";
    void this.#ask(conversation, body, reply, {
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

  /** Show the message before or after this one in its place. */
  walk(entry: Entry, step: 1 | -1): Entry {
    const next = this.#branches.walk(this.conversation, entry, step);
    this.#events.onChange();
    return next;
  }

  /** Stop the reply. Before the server has named the run, Stop waits for the name, or takes the question back. */
  stop(entry: Entry): void {
    if (!entry.running || entry.stopping) return;
    entry.stopping = true;
    const stream = this.#streams.get(entry);
    const runId = stream?.runId ?? null;
    if (runId) void this.#stop(entry, runId);
    else if (entry.connection?.phase === "waiting") stream?.close();
    this.#events.onChange();
  }

  /** What the browser thinks of its network. */
  set offline(offline: boolean) {
    this.#offline = offline;
    for (const stream of this.#streams.values()) stream.offline = offline;
  }

  /** The page is looked at again: do not wait any longer. */
  wake(): void {
    for (const stream of this.#streams.values()) stream.wake();
  }

  /** Break the connections off, to see what happens then. @returns how many there were. */
  plug(): number {
    return [...this.#streams.values()].filter((stream) => stream.plug()).length;
  }

  /** Follow nothing any more. The runs go on. */
  close(): void {
    this.sending.closed = true;
    for (const stream of this.#streams.values()) stream.close();
    this.#streams.clear();
  }

  #followAll(conversation: Conversation, running: { run_id: string; message_id: string }[]): void {
    for (const { run_id: runId, message_id: messageId } of running) {
      const entry = conversation.find(messageId);
      if (!entry || this.#streams.has(entry)) continue;
      entry.begin();
      entry.runId = runId;
      void this.#follow(conversation, entry, { runId }, {});
    }
  }

  #ask(conversation: Conversation, body: SendBody, reply: Entry, hooks: Hooks): Promise<void> {
    return this.#follow(conversation, reply, { ask: { url: this.#api.url("/conversation"), body } }, hooks);
  }

  async #follow(
    conversation: Conversation,
    entry: Entry,
    what: { runId: string } | { ask: { url: string; body: SendBody } },
    hooks: Hooks,
  ): Promise<void> {
    const { wire, ...options } = this.#options;
    const stream = new RunStream({
      ...what,
      ...options,
      ...(wire ? { tap: wire.tap() } : {}),
      fetch: this.#api.fetch,
      eventsUrl: (runId) => this.#api.eventsUrl(runId),
      offline: this.#offline,
      onRunId: (runId) => {
        entry.runId = runId;
        if (entry.stopping) void this.#stop(entry, runId);
      },
      onConnection: (connection) => {
        entry.connection = connection;
        if (entry.stopping && stream.runId === null && connection.phase === "waiting") stream.close();
        this.#events.onChange();
      },
      onEvent: (event) => this.#event(conversation, entry, event, hooks),
    });
    this.#streams.set(entry, stream);
    const outcome = await stream.run();
    if (this.#streams.get(entry) === stream) this.#streams.delete(entry);
    entry.connection = null;
    await this.#ended(conversation, entry, outcome, hooks);
    this.sending.pump(conversation);
    this.#events.onChange();
  }

  #event(conversation: Conversation, entry: Entry, event: RunEvent, hooks: Hooks): void {
    if (hooks.known) return;
    if (event.event === "start" && hooks.onKnown) {
      const known = conversation.find(event.message_id);
      if (known && known !== entry) {
        // Sent before, by this page ere it was loaded anew or by another tab: what came of it is here already.
        hooks.known = true;
        this.#streams.get(entry)?.close();
        return hooks.onKnown(known);
      }
    }
    const silent = entry.text === entry.base && !entry.reasoning;
    if (event.event === "title") {
      conversation.title = event.title;
      this.#events.onRun?.();
    }
    entry.apply(event);
    if (event.event === "start") {
      if (conversation.queue.after === entry && conversation.queue.items.length > 0) conversation.queue.save();
      hooks.onStart?.(event.user_message_id);
      if (hooks.onStart) {
        this.#events.onSent?.({ conversation: event.conversation_id, message: event.user_message_id, run: event.run_id });
      }
      conversation.title ||= event.title;
      conversation.model = event.model;
      if (conversation.id === null) {
        conversation.id = event.conversation_id;
        conversation.queue.named(event.conversation_id);
        if (this.conversation === conversation) this.#events.onConversation?.(event.conversation_id);
      }
      this.#events.onAnnounce?.("The reply has started.");
      this.#events.onRun?.();
    } else if (!entry.running) {
      if (entry.timing && entry.id && conversation.id) {
        const times = this.#kept.read<Record<string, Times>>("times", conversation.id);
        this.#kept.write("times", conversation.id, { ...times, [entry.id]: entry.timing });
      }
      this.#events.onAnnounce?.(endAnnouncement(entry));
      this.#events.onFinish?.({ conversation: conversation.id, message: entry.id, run: entry.runId, status: entry.status });
      this.#events.onRun?.();
    } else if (!silent && event.event !== "title" && event.event !== "reset") {
      return; // Growing text needs no other change of the page.
    }
    this.#events.onChange();
  }

  async #ended(conversation: Conversation, entry: Entry, outcome: Outcome, hooks: Hooks): Promise<void> {
    switch (outcome.kind) {
      case "ended":
        return;
      case "closed":
        // Taken back before it was sent, or the reader went to another conversation.
        if (entry.stopping && entry.runId === null) hooks.onRefused?.(null);
        return;
      case "unsent":
        hooks.onRefused?.(undefined);
        return;
      case "missing":
        entry.end({ event: "interrupted", message: "The server does not know this reply any more." });
        return;
      case "refused":
        if (entry.runId === null) {
          hooks.onRefused?.(outcome.problem);
          // Another tab asked here first, or sent this already: show what it asked.
          if (["run_in_progress", "idempotency_conflict"].includes(outcome.problem.code)) {
            if (!(await this.#reread(conversation))) hooks.onRefused?.(undefined);
          }
        } else {
          entry.end({ event: "interrupted", message: outcome.problem.message });
        }
        return;
      case "over":
        if (!(await this.#reread(conversation))) {
          entry.end({ event: "interrupted", message: "The end of this reply could not be loaded. Reload the page." });
        }
    }
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

  async #stop(entry: Entry, runId: string): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        const { state, upstream_closed_ms: closedIn } = await this.#api.stop(runId);
        if ((state as Status) === "stopped") entry.closedIn = closedIn;
        break;
      } catch (error) {
        const final = error instanceof Problem && error.status < 500;
        if (final || attempt >= STOP_ATTEMPTS) {
          this.problem = `Stop did not reach the server: ${error instanceof Problem ? error.message : "no connection."}`;
          break;
        }
        const clock = this.#options.clock;
        await new Promise<void>((resolve) => void (clock ? clock.setTimeout(resolve, 1000) : setTimeout(resolve, 1000)));
      }
    }
    entry.stopping = false;
    this.#events.onChange();
  }
}
