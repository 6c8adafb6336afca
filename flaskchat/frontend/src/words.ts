/** What happens, said in words where it happens. All of the page's changing texts. */

import type { Entry } from "./conversation.ts";

/** How a running reply does; empty while all is well and text comes. */
export function runningWords(entry: Entry): string {
  if (entry.stopping) return entry.runId === null ? "Stopping…" : "Stopped. Closing the model's connection…";
  const connection = entry.connection;
  if (connection?.phase === "waiting" && !connection.silent) {
    const { reason, sent, attempt } = connection;
    if (reason === "offline") {
      return sent
        ? "You are offline. The reply goes on being written; nothing is lost."
        : "You are offline. Your message is sent when the connection is back.";
    }
    if (reason === "busy") {
      return sent ? "The server is busy. Reconnecting, nothing is lost." : "The server is busy. Sending again…";
    }
    if (sent) return "Connection lost. Reconnecting, nothing is lost.";
    return attempt === 1 ? "Not sent yet: no connection. Trying again…" : `Not sent yet: no connection. Attempt ${attempt + 1}…`;
  }
  if (entry.text !== entry.base) return "";
  if (entry.runId === null) return "Sending…";
  return entry.reasoning ? "Thinking…" : "Waiting for the first words…";
}

/** How a reply ended, if there is something to say. */
export function endWords(entry: Entry): string {
  switch (entry.status) {
    case "stopped":
      return entry.closedIn === null
        ? "Stopped."
        : `Stopped. The model's connection was closed in ${Math.max(1, Math.round(entry.closedIn))} ms.`;
    case "error":
      return entry.words || "The reply failed. What had been written is kept.";
    case "interrupted":
      return entry.words || "The reply was interrupted. What had been written is kept.";
    case "done":
      return entry.words || (entry.role === "assistant" && !entry.text ? "The reply is empty." : "");
    default:
      return "";
  }
}

/** Why a reply ended, where it is not that all was said. */
export function finishWords(reason: string | null | undefined): string {
  switch (reason) {
    case undefined:
    case null:
    case "":
    case "stop":
      return "";
    case "length":
      return "The reply was cut short: it reached its longest length.";
    case "content_filter":
      return "The reply was cut short by the model's content filter.";
    case "tool_calls":
    case "function_call":
      return "The reply ended with a call of a tool, which this chat does not make.";
    default:
      return `The reply ended early: ${reason.replaceAll("_", " ")}.`;
  }
}

/** A length of time in few words. @param milliseconds of it. */
export function span(milliseconds: number): string {
  const seconds = milliseconds / 1000;
  if (seconds < 0.95) return `${Math.max(1, Math.round(milliseconds))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** What a screen reader is told when a reply ends. */
export function endAnnouncement(entry: Entry): string {
  return entry.status === "done" ? "The reply is complete." : endWords(entry);
}

/** When a conversation was last written in, in few words. */
export function when(time: string | number, now = Date.now()): string {
  const date = new Date(typeof time === "number" ? time * 1000 : time);
  if (Number.isNaN(date.getTime())) return "";
  const minutes = Math.floor((now - date.getTime()) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 24 * 60 && new Date(now).getDate() === date.getDate()) {
    return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  }
  const year = new Date(now).getFullYear() === date.getFullYear() ? undefined : "numeric";
  return date.toLocaleDateString(undefined, { day: "numeric", month: "short", year });
}
