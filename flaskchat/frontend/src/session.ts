/**
 * What a reader of the page can do: open a conversation, ask, stop, ask again, go on. Holds the conversation and its
 * streams; no DOM. Whoever shows it is told by `onChange`.
 */

import type { Api } from "./api.ts";
import { Conversation } from "./conversation.ts";
import type { Entry } from "./conversation.ts";
import { newId, Problem } from "./protocol.ts";
import type { RunEvent, SendBody, Status } from "./protocol.ts";
import type { Follow } from "./following.ts";
import { RunStream } from "./stream.ts";
import type { Clock, Outcome } from "./stream.ts";
import type { Wire } from "./wire.ts";
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
}

const STOP_ATTEMPTS = 4;

export class Session {
  conversation = new Conversation();
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
  /** A question that may have reached the server although no answer came: asked again, it keeps its id. */
  #unsent: { id: string; text: string; conversation: string | null } | null = null;

  constructor(api: Api, events: SessionEvents, options: SessionOptions = {}) {
    this.#api = api;
    this.#events = events;
    this.#options = options;
  }

  /** The reply that is being written in the branch shown. */
  get running(): Entry | null {
    return this.conversation.branch.findLast((entry) => entry.running) ?? null;
  }

  /** Show a conversation, or an empty one. Streams of the one that is left are closed; its runs go on. */
  async open(id: string | null): Promise<void> {
    const opening = ++this.#opening;
    // A question that the server has not taken yet goes on being sent: its text would be lost.
    for (const [entry, stream] of this.#streams) {
      if (stream.runId === null) continue;
      stream.close();
      this.#streams.delete(entry);
    }
    this.conversation = new Conversation();
    this.#options.wire?.clear();
    this.problem = this.failure = "";
    this.loading = id !== null;
    this.#events.onChange();
    if (id === null) return;
    try {
      const data = await this.#api.conversation(id);
      if (opening !== this.#opening) return;
      this.conversation.read(data);
      this.#followAll(data.running);
    } catch (error) {
      if (opening !== this.#opening) return;
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

  /** Ask. The question and an empty reply are shown at once. */
  send(text: string): void {
    const conversation = this.conversation;
    const leaf = conversation.leaf;
    const known = this.#unsent;
    const same = known && known.text === text && known.conversation === conversation.id;
    const id = same ? known.id : newId();
    this.#unsent = null;
    this.problem = "";
    const body: SendBody = { action: "send", message: { id, text } };
    if (conversation.id) body.conversation_id = conversation.id;
    if (leaf?.id) body.parent_id = leaf.id;
    if (this.model) body.model = this.model;
    const question = conversation.add("user", leaf, text);
    const reply = conversation.add("assistant", question);
    reply.begin();
    void this.#ask(body, reply, {
      onStart: (userMessageId) => (question.id = userMessageId),
      onRefused: (unsent) => {
        conversation.drop([question, reply], leaf);
        if (unsent) this.#unsent = { id, text, conversation: conversation.id };
        this.#events.onReturn?.(text);
      },
    });
  }

  /** Ask the same again: a sibling of the reply. */
  regenerate(entry: Entry): void {
    if (!entry.id) return;
    const conversation = this.conversation;
    const reply = conversation.add("assistant", entry.parent);
    reply.begin();
    const body: SendBody = { action: "regenerate", message_id: entry.id, request_id: newId() };
    if (this.model) body.model = this.model;
    void this.#ask(body, reply, { onRefused: () => conversation.drop([reply], entry) });
  }

  /** Let a stopped or interrupted reply go on where it ended. */
  continue(entry: Entry): void {
    if (!entry.id) return;
    const { status, words, closedIn } = entry;
    entry.begin();
    void this.#ask({ action: "continue", message_id: entry.id, request_id: newId() }, entry, {
      onRefused: () => Object.assign(entry, { status, words, closedIn }),
    });
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
    for (const stream of this.#streams.values()) stream.close();
    this.#streams.clear();
  }

  #followAll(running: { run_id: string; message_id: string }[]): void {
    for (const { run_id: runId, message_id: messageId } of running) {
      const entry = this.conversation.find(messageId);
      if (!entry || this.#streams.has(entry)) continue;
      entry.begin();
      entry.runId = runId;
      void this.#follow(entry, { runId }, {});
    }
  }

  #ask(body: SendBody, reply: Entry, hooks: Hooks): Promise<void> {
    return this.#follow(reply, { ask: { url: this.#api.url("/conversation"), body } }, hooks);
  }

  async #follow(
    entry: Entry,
    what: { runId: string } | { ask: { url: string; body: SendBody } },
    hooks: Hooks,
  ): Promise<void> {
    const conversation = this.conversation;
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
        this.#events.onChange();
      },
      onEvent: (event) => this.#event(conversation, entry, event, hooks),
    });
    this.#streams.set(entry, stream);
    const outcome = await stream.run();
    if (this.#streams.get(entry) === stream) this.#streams.delete(entry);
    entry.connection = null;
    await this.#ended(conversation, entry, outcome, hooks);
    this.#events.onChange();
  }

  #event(conversation: Conversation, entry: Entry, event: RunEvent, hooks: Hooks): void {
    const silent = entry.text === entry.base && !entry.reasoning;
    if (event.event === "title") {
      conversation.title = event.title;
      this.#events.onRun?.();
    }
    entry.apply(event);
    if (event.event === "start") {
      hooks.onStart?.(event.user_message_id);
      if (hooks.onStart) {
        this.#events.onSent?.({ conversation: event.conversation_id, message: event.user_message_id, run: event.run_id });
      }
      conversation.title ||= event.title;
      conversation.model = event.model;
      if (conversation.id === null) {
        conversation.id = event.conversation_id;
        if (this.conversation === conversation) this.#events.onConversation?.(event.conversation_id);
      }
      this.#events.onAnnounce?.("The reply has started.");
      this.#events.onRun?.();
    } else if (!entry.running) {
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
        if (entry.stopping && entry.runId === null) hooks.onRefused?.(true);
        return;
      case "unsent":
        this.problem = "Your message could not be sent: no connection. It is back in the box below.";
        hooks.onRefused?.(true);
        return;
      case "missing":
        entry.end({ event: "interrupted", message: "The server does not know this reply any more." });
        return;
      case "refused":
        if (entry.runId === null) {
          this.problem = outcome.problem.message;
          hooks.onRefused?.(false);
          // Another tab asked here first: show what it asked.
          if (outcome.problem.code === "run_in_progress") await this.#reread(conversation);
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
    if (conversation.id === null || this.conversation !== conversation) return true;
    try {
      const data = await this.#api.conversation(conversation.id);
      if (this.conversation !== conversation) return true;
      conversation.read(data, new Set(this.#streams.keys()));
      this.#followAll(data.running);
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

interface Hooks {
  onStart?: (userMessageId: string) => void;
  onRefused?: (maybeSent: boolean) => void;
}
