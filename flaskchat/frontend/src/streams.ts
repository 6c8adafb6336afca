/**
 * The replies that are being followed, and what their events do to the conversation they belong to. Holds the streams;
 * what is asked, and when, is the session's. No DOM.
 */

import type { Api } from "./api.ts";
import type { Conversation, Entry } from "./conversation.ts";
import { PROMPT } from "./kept.ts";
import type { Kept } from "./kept.ts";
import { Problem } from "./protocol.ts";
import type { RunEvent, SendBody, Status } from "./protocol.ts";
import type { Hooks } from "./sending.ts";
import type { SessionEvents, SessionOptions } from "./session.ts";
import { REAL, RunStream } from "./stream.ts";
import type { Outcome } from "./stream.ts";
import type { Times } from "./timing.ts";
import { endAnnouncement, runningWords } from "./words.ts";

/** What the streams may ask of the session. */
export interface Watched {
  shown: () => Conversation;
  /** Read a conversation again. @returns whether that could be done. */
  reread: (conversation: Conversation) => Promise<boolean>;
  problem: (words: string) => void;
  /** A reply has ended: what waits for it can be sent. */
  pump: (conversation: Conversation) => void;
}

const STOP_ATTEMPTS = 4;

export class Streams {
  readonly #api: Api;
  readonly #events: SessionEvents;
  readonly #options: SessionOptions;
  readonly #kept: Kept;
  readonly #watched: Watched;
  readonly #streams = new Map<Entry, RunStream>();
  #offline = false;

  constructor(api: Api, events: SessionEvents, options: SessionOptions, kept: Kept, watched: Watched) {
    this.#api = api;
    this.#events = events;
    this.#options = options;
    this.#kept = kept;
    this.#watched = watched;
  }

  /** The entries that are being followed. */
  get entries(): ReadonlySet<Entry> {
    return new Set(this.#streams.keys());
  }

  /** What the browser thinks of its network. */
  set offline(offline: boolean) {
    this.#offline = offline;
    for (const stream of this.#streams.values()) stream.offline = offline;
  }

  /** Do not wait any longer. */
  wake(): void {
    for (const stream of this.#streams.values()) stream.wake();
  }

  /** @returns how many connections were broken off. */
  plug(): number {
    return [...this.#streams.values()].filter((stream) => stream.plug()).length;
  }

  /** Follow these no more. The runs go on. */
  leave(entries: Iterable<Entry>): void {
    for (const entry of [...entries]) {
      this.#streams.get(entry)?.close();
      this.#streams.delete(entry);
    }
  }

  /** Follow what the server says is being written. */
  resume(conversation: Conversation, running: { run_id: string; message_id: string }[]): void {
    for (const { run_id: runId, message_id: messageId } of running) {
      const entry = conversation.find(messageId);
      if (!entry || this.#streams.has(entry)) continue;
      entry.begin();
      entry.runId = runId;
      void this.#follow(conversation, entry, { runId }, {});
    }
  }

  /** Ask, and follow what comes of it. */
  ask(conversation: Conversation, body: SendBody, reply: Entry, hooks: Hooks): void {
    void this.#follow(conversation, reply, { ask: { url: this.#api.url("/conversation"), body } }, hooks);
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

  async #follow(
    conversation: Conversation,
    entry: Entry,
    what: { runId: string } | { ask: { url: string; body: SendBody } },
    hooks: Hooks,
  ): Promise<void> {
    const { wire, ...options } = this.#options;
    let dropped = false;
    const named = { title: "" };
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
        // Once for each drop, however many attempts it takes to come back.
        if (dropped ? connection.phase === "live" : connection.phase === "waiting" && !connection.silent) {
          dropped = !dropped;
          this.#events.onAnnounce?.(dropped ? runningWords(entry) : "Connected again.");
        }
        if (entry.stopping && stream.runId === null && connection.phase === "waiting") stream.close();
        this.#events.onChange();
      },
      onEvent: (event) => this.#event(conversation, entry, event, hooks, "ask" in what, named),
    });
    this.#streams.set(entry, stream);
    const outcome = await stream.run();
    if (this.#streams.get(entry) === stream) this.#streams.delete(entry);
    entry.connection = null;
    await this.#ended(conversation, entry, outcome, hooks);
    this.#watched.pump(conversation);
    this.#events.onChange();
  }

  /** @param named what the conversation was called when the run began, as far as its events have told. */
  #event(conversation: Conversation, entry: Entry, event: RunEvent, hooks: Hooks, asked: boolean, named: { title: string }): void {
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
    const { reasoning, text } = entry;
    if (event.event === "title") {
      // Events are read again after a reload: a title that a person has given since is not taken back by them.
      if (conversation.title === named.title) conversation.title = event.title;
      this.#events.onRun?.();
    }
    entry.apply(event);
    // The first word of a reply, or of its reasoning, takes away the words that stood in its place.
    const first = (text === entry.base) !== (entry.text === entry.base) || (reasoning === "") !== (entry.reasoning === "");
    if (event.event === "start") {
      named.title = event.title;
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
        if (conversation.systemPrompt) this.#kept.write(PROMPT, null, null);
        if (this.#watched.shown() === conversation) this.#events.onConversation?.(event.conversation_id);
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
    } else if (!first && event.event !== "title" && event.event !== "reset") {
      return; // Growing text needs no other change of the page.
    }
    if (asked && (event.event === "start" || !entry.running)) this.#events.onNews?.(conversation.id!, entry.runId);
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
        this.#api.answered(outcome.problem.status); // to this tab, or to the one that asks for all of them
        if (entry.runId === null) {
          hooks.onRefused?.(outcome.problem);
          // Another tab asked here first, or sent this already: show what it asked.
          if (["run_in_progress", "idempotency_conflict"].includes(outcome.problem.code)) {
            if (!(await this.#watched.reread(conversation))) hooks.onRefused?.(undefined);
          }
        } else {
          entry.end({ event: "interrupted", message: outcome.problem.message });
        }
        return;
      case "over":
        if (!(await this.#watched.reread(conversation))) {
          entry.end({ event: "interrupted", message: "The end of this reply could not be loaded. Reload the page." });
        }
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
          this.#watched.problem(`Stop did not reach the server: ${error instanceof Problem ? error.message : "no connection."}`);
          break;
        }
        await new Promise<void>((resolve) => void (this.#options.clock ?? REAL).setTimeout(resolve, 1000));
      }
    }
    entry.stopping = false;
    this.#events.onChange();
  }
}
