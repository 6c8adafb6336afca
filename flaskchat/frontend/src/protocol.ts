/**
 * What crosses the wire, as types: the events of a run, conversations, messages, problems.
 * Pure declarations and checks; no I/O, no DOM.
 */

export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  reasoning_tokens?: number;
  cached_tokens?: number;
}

export interface StartData {
  run_id: string;
  conversation_id: string;
  message_id: string;
  user_message_id: string;
  model: string;
  title: string;
}

/** The closed set of events of a run. `reset` alone is not numbered. */
export type RunEvent =
  | ({ event: "start" } & StartData)
  | { event: "delta"; text: string }
  | { event: "reasoning"; text: string }
  | { event: "tool"; id: string; name: string; arguments: string }
  | { event: "title"; title: string }
  | { event: "reset"; seq: number; text: string }
  | TerminalEvent;

export type TerminalEvent =
  | { event: "done"; finish_reason: string; usage?: Usage | null }
  | { event: "error"; code: string; message: string; retryable: boolean }
  | { event: "stopped" }
  | { event: "interrupted"; message: string };

const NAMES = new Set(["start", "delta", "reasoning", "tool", "title", "reset", "done", "error", "stopped", "interrupted"]);
const TERMINAL = new Set(["done", "error", "stopped", "interrupted"]);

export function isTerminal(event: RunEvent): event is TerminalEvent {
  return TERMINAL.has(event.event);
}

/** The event of one frame, or null for a name this page does not know: a newer server may send more kinds. */
export function parseEvent(name: string | undefined, data: string): RunEvent | null {
  if (name === undefined || !NAMES.has(name)) return null;
  return { ...(JSON.parse(data) as object), event: name } as RunEvent;
}

export type Status = "running" | "done" | "error" | "stopped" | "interrupted";

export interface Message {
  id: string;
  parent_id: string | null;
  role: "user" | "assistant";
  text: string;
  /** What else belongs to the message, such as the model's reasoning: `{type: "reasoning", text: "…"}`. */
  parts?: Part[] | null;
  model?: string | null;
  status: Status;
  run_id?: string | null;
  usage?: Usage | null;
  finish_reason?: string | null;
  /** What the terminal event said, where the reply failed. */
  error?: { message?: string } | null;
  created_at?: string | number;
}

export interface Part {
  type?: string;
  text?: string;
  [key: string]: unknown;
}

export interface Conversation {
  id: string;
  title: string;
  model: string | null;
  system_prompt?: string | null;
  current_leaf_id: string | null;
  messages: Message[];
  running: { run_id: string; message_id: string }[];
}

export interface ConversationItem {
  id: string;
  title: string;
  model: string | null;
  updated_at: string | number;
  running_run_id: string | null;
  /** Where a search found its words; null where the title has them. */
  hit?: Hit | null;
}

export interface Hit {
  message_id: string;
  before: string;
  match: string;
  after: string;
}

/** The body of PATCH /conversations/<id>. */
export interface Change {
  title?: string;
  system_prompt?: string | null;
  model?: string | null;
  current_leaf_id?: string;
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

export interface Model {
  id: string;
  label: string;
  default: boolean;
}

export interface Stopped {
  run_id: string;
  state: Status;
  upstream_closed_ms: number | null;
}

/** The body of POST /conversation. */
export type SendBody =
  | { action: "send"; message: { id: string; text: string }; conversation_id?: string; parent_id?: string | null; model?: string; system_prompt?: string }
  | { action: "regenerate"; message_id: string; request_id: string; model?: string }
  | { action: "continue"; message_id: string; request_id: string };

/** Where a proxy said no by itself, without a problem document. */
const WORDS: Record<number, string> = { 413: "This is longer than the server takes. Make it shorter." };

/** An answer that says no, as its problem document says it (RFC 9457). */
export class Problem extends Error {
  readonly status: number;
  readonly code: string;
  /** Milliseconds until trying again may help, where the server said so. */
  readonly retryAfter: number | null;
  readonly runId: string | null;

  constructor(status: number, body: Record<string, unknown>, retryAfter: number | null) {
    const errors = Array.isArray(body["errors"]) ? (body["errors"] as { field?: string; reason?: string }[]) : [];
    const reasons = errors.map(({ field, reason }) => (field ? `${field}: ${reason}` : reason)).join("; ");
    const detail = reasons ? `Not valid: ${reasons}.` : body["detail"];
    super(typeof detail === "string" && detail ? detail : (WORDS[status] ?? `The server answered with ${status}.`));
    this.status = status;
    this.code = typeof body["code"] === "string" ? body["code"] : "";
    this.runId = typeof body["run_id"] === "string" ? body["run_id"] : null;
    this.retryAfter = typeof body["retry_after"] === "number" ? body["retry_after"] * 1000 : retryAfter;
  }
}

/** Whether the application itself said no; a proxy whose server is away answers without a problem document. */
export async function problemOf(response: Response): Promise<Problem> {
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfter = Number.isFinite(seconds) ? seconds * 1000 : null;
  let body: Record<string, unknown> = {};
  if (/\bjson\b/.test(response.headers.get("Content-Type") ?? "")) {
    try {
      body = (await response.json()) as Record<string, unknown>;
    } catch {
      // Cut off or not JSON after all: the status says enough.
    }
  }
  return new Problem(response.status, body, retryAfter);
}

/** A random UUID. `crypto.randomUUID` exists in secure contexts only, and a server on the local network has none. */
export function newId(source: Pick<Crypto, "getRandomValues"> & Partial<Pick<Crypto, "randomUUID">> = crypto): string {
  if (source.randomUUID) return source.randomUUID();
  const bytes = source.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
