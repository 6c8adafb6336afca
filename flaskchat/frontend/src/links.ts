/** Links and images of a model's text: which may be followed, and what they say about where they lead. */

import type { Tokens } from "marked";
import { decodeEntities } from "./entities.ts";

/** Two names with a dot between them. */
const HOST = /(?:[\p{L}\p{N}-]+\.)+\p{L}[\p{L}\p{N}-]+/gu;

/** The address if it may be followed, else null. */
export function safe(href: string): URL | null {
  if (!/^(?:https?:\/\/|mailto:)/i.test(href)) return null;
  try {
    return new URL(href);
  } catch {
    return null;
  }
}

/** The element of a link, empty; a span where it must not be followed. */
export function linkElement(token: Tokens.Link): HTMLElement {
  const url = safe(token.autolink ? token.href : decodeEntities(token.href));
  return url ? anchor(url) : document.createElement("span");
}

/** Say which host a link leads to where its words name another one, or where the address itself is made to be misread. */
export function unmask(node: HTMLElement): void {
  const href = node.getAttribute("href");
  if (!href) return;
  const url = new URL(href);
  const host = url.protocol === "mailto:" ? (url.pathname.split("@").at(-1) ?? "") : url.hostname;
  const named = (node.textContent ?? "").normalize("NFKC").toLowerCase().match(HOST) ?? [];
  const same = (name: string): boolean => host === name || host === `www.${name}` || `www.${host}` === name;
  const misread = url.username !== "" || /(?:^|\.)xn--/.test(host) || /^[\d.]+$|^\[/.test(host);
  if (!misread && (named.length === 0 || same(named[0]!))) return;
  const shown = document.createElement("span");
  shown.className = "host";
  shown.append(` (${host || "no host"})`);
  node.append(shown);
}

/** An image is a link that names its host: it is loaded when somebody opens it, and in a tab of its own. */
export function image(token: Tokens.Image): HTMLElement {
  const url = safe(decodeEntities(token.href));
  const named = decodeEntities(token.text);
  const node = url ? anchor(url) : document.createElement("span");
  node.className = "image";
  node.append(`Image${named ? `: ${named}` : ""} (${url?.host ? url.host : "not shown"})`);
  if (url?.host) node.title = `Load the image from ${url.host} in a new tab: ${url.href}`;
  return node;
}

function anchor(url: URL): HTMLElement {
  const node = document.createElement("a");
  node.href = url.href;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  node.title = url.href;
  return node;
}
