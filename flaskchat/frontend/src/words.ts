/** What happens, said in words where it happens. All of the page's changing texts. */

import type { Entry } from "./conversation.ts";

/** How a running reply does; empty while all is well and text comes. */
export function runningWords(entry: Entry): string {
  if (entry.stopping) return "Stopping…";
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
