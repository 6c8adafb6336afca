/**
 * A conversation as the page holds it: a tree of entries, one branch of which is shown. No I/O, no DOM.
 *
 * An entry stays the same object from the moment its text is sent until the conversation is left: the nodes that show
 * it hang on it.
 */

import type { Conversation as ConversationData, Message, RunEvent, Status, TerminalEvent, Usage } from "./protocol.ts";
import type { Queue } from "./queue.ts";
import type { Connection } from "./stream.ts";
import { Timing } from "./timing.ts";
import { finishWords } from "./words.ts";

let keys = 0;

/** One message. */
export class Entry {
  readonly key = ++keys;
  readonly role: "user" | "assistant";
  parent: Entry | null;
  /** The server's id, once it has told it. */
  id: string | null = null;
  text = "";
  reasoning = "";
  status: Status = "done";
  runId: string | null = null;
  /** How the reply ended, in the server's words; for an error or an interruption. */
  words = "";
  /** How the stream of a running reply does. */
  connection: Connection | null = null;
  stopping = false;
  model: string | null = null;
  usage: Usage | null = null;
  /** How long the reply took, as far as this page has seen it. */
  timing: Timing | null = null;
  /** The message below this one that was shown last. */
  chosen: Entry | null = null;
  /** Milliseconds in which the model's connection was closed after Stop. */
  closedIn: number | null = null;
  /** Text and reasoning from before this run, where the run continues a reply. */
  base = "";
  #baseReasoning = "";
  /** Called when text or reasoning changed. */
  onText: (() => void) | null = null;

  constructor(role: "user" | "assistant", parent: Entry | null, text = "") {
    this.role = role;
    this.parent = parent;
    this.text = text;
  }

  get running(): boolean {
    return this.status === "running";
  }

  /** Take what the server has stored. */
  read(message: Message): void {
    this.id = message.id;
    this.text = message.text;
    this.status = message.status;
    this.runId = message.run_id ?? null;
    this.reasoning = (message.parts ?? [])
      .filter((part) => part.type === "reasoning")
      .map((part) => part.text ?? "")
      .join("");
    this.words = message.error?.message ?? (this.status === "done" ? finishWords(message.finish_reason) : "");
    this.model = message.model ?? null;
    this.usage = message.usage ?? null;
    this.onText?.();
  }

  /** A run begins that writes this entry, after the text it has. @param timed the page sees it from its beginning. */
  begin(timed = false): void {
    this.runId = null; // until the server tells it: what was asked may be refused, or taken back
    this.timing = timed ? new Timing() : null;
    this.usage = null;
    this.base = this.text;
    this.#baseReasoning = this.reasoning;
    this.status = "running";
    this.words = "";
    this.closedIn = null;
    this.stopping = false;
  }

  /** The run's log is read from its first event. */
  rewind(): void {
    this.text = this.base;
    this.reasoning = this.#baseReasoning;
    this.onText?.();
  }

  apply(event: RunEvent): void {
    switch (event.event) {
      case "start":
        this.id = event.message_id;
        this.runId = event.run_id;
        this.model = event.model;
        this.rewind();
        break;
      case "delta":
        this.timing?.text();
        this.text += event.text;
        break;
      case "reasoning":
        this.timing?.reasoning();
        this.reasoning += event.text;
        break;
      case "reset":
        this.text = this.base + event.text;
        break;
      case "done":
      case "error":
      case "stopped":
      case "interrupted":
        this.end(event);
        break;
    }
    this.onText?.();
  }

  end(event: TerminalEvent): void {
    this.status = event.event;
    this.connection = null;
    this.words = "message" in event ? event.message : "";
    this.timing?.end();
    if (event.event !== "done") return;
    this.words = finishWords(event.finish_reason);
    this.usage = event.usage ?? null;
  }
}

export class Conversation {
  id: string | null = null;
  title = "";
  model: string | null = null;
  systemPrompt = "";
  readonly queue: Queue;
  #leaf: Entry | null = null;
  readonly #entries: Entry[] = [];

  constructor(queue: Queue) {
    this.queue = queue;
  }

  /** The end of the branch that is shown. */
  get leaf(): Entry | null {
    return this.#leaf;
  }

  set leaf(leaf: Entry | null) {
    this.#leaf = leaf;
    for (let entry = leaf; entry?.parent; entry = entry.parent) entry.parent.chosen = entry;
  }

  /** The messages from the first to the leaf, as they are read. */
  get branch(): Entry[] {
    const path: Entry[] = [];
    for (let entry = this.leaf; entry; entry = entry.parent) path.push(entry);
    return path.reverse();
  }

  get entries(): readonly Entry[] {
    return this.#entries;
  }

  find(id: string): Entry | undefined {
    return this.#entries.find((entry) => entry.id === id);
  }

  /** A message below `parent`; it becomes the end of the branch that is shown. */
  add(role: "user" | "assistant", parent: Entry | null, text = ""): Entry {
    const entry = new Entry(role, parent, text);
    this.#entries.push(entry);
    this.leaf = entry;
    return entry;
  }

  /** What was said in place of this message, with it, in order of creation. */
  siblings(entry: Entry): Entry[] {
    return this.#entries.filter((each) => each.parent === entry.parent && each.role === entry.role);
  }

  /** Show the branch of an entry, down to where it was left last. */
  show(entry: Entry): void {
    let leaf = entry;
    for (;;) {
      const next: Entry | undefined = leaf.chosen ?? this.#entries.findLast((each) => each.parent === leaf);
      if (!next) break;
      leaf = next;
    }
    this.leaf = leaf;
  }

  /** Whether a reply is being written where a question below `parent` would go, as the server sees it. */
  busy(parent: Entry | null): boolean {
    return this.#entries.some((entry) => entry.running && (entry === parent || entry.parent?.parent === parent));
  }

  /** Take entries out again that the server never got; they are the last ones. */
  drop(entries: Entry[], leaf: Entry | null): void {
    for (const entry of entries) {
      const at = this.#entries.indexOf(entry);
      if (at >= 0) this.#entries.splice(at, 1);
      if (entry.parent?.chosen === entry) entry.parent.chosen = null;
    }
    if (this.leaf && entries.includes(this.leaf)) this.leaf = leaf;
  }

  /** Take what the server has stored, and keep the entries that are known. Those in `live` are being followed. */
  read(data: ConversationData, live: ReadonlySet<Entry> = new Set()): void {
    this.id = data.id;
    this.title = data.title;
    this.model = data.model;
    this.systemPrompt = data.system_prompt ?? "";
    for (const message of data.messages) {
      let entry = this.find(message.id);
      const parent = (message.parent_id && this.find(message.parent_id)) || null;
      if (!entry) {
        entry = new Entry(message.role, parent);
        this.#entries.push(entry);
      }
      entry.parent = parent;
      if (!live.has(entry)) entry.read(message);
    }
    const stored = (data.current_leaf_id ? this.find(data.current_leaf_id) : undefined) ?? this.#entries.at(-1) ?? null;
    // The reader stays in the branch that is shown, and a question that is still on its way is in none the server knows.
    let entry = stored;
    while (entry && entry !== this.leaf) entry = entry.parent;
    if (!this.leaf || entry) this.leaf = stored;
  }
}
