/**
 * The wire: what came over the connections of this conversation, frame by frame, for those who want to learn how it works
 * or to see what goes wrong. Loaded when it is opened first. It draws its lines by itself, because there are many.
 */

import { html, render } from "lit";
import type { Api } from "./api.ts";
import { toClipboard } from "./copy.ts";
import { field, framesOf } from "./lines.ts";
import type { Frame } from "./lines.ts";
import type { Wire, WireEntry } from "./wire.ts";
import css from "./wire-panel.css";

/** Lines that are kept. */
const LINES = 2000;
/** Characters of a line's data that are shown. */
const SHOWN = 2000;
/** Lines of a block: the browser lays out only the blocks that are seen. */
const BLOCK = 50;
/** How near the end one must be for the list to stay at the end; pixels. */
const NEAR = 24;
const TERMINAL = new Set(["done", "error", "stopped", "interrupted"]);

const ENDS: Record<string, string> = {
  over: "End of the reply.",
  closed: "Cut: the server ended the stream before the reply was over, as a worker that leaves does.",
  lost: "Cut: the connection broke.",
  plug: "Cut: you pulled the plug.",
  silent: "Cut: nothing came any more, not even a heartbeat.",
  offline: "Cut: the browser went offline.",
  moved: "Handed over: several tabs are open, and one of them holds the connections for all.",
  left: "Left: nobody reads it here any more. The reply itself goes on.",
};

export interface WireContext {
  root: ShadowRoot;
  api: () => Api;
  wire: Wire;
  /** @returns how many connections were broken off. */
  plug: () => number;
  close: () => void;
}

interface Stream {
  decoder: TextDecoder;
  text: string;
}

export class WirePanel {
  /** Stands in the page as it is. */
  readonly element = document.createElement("section");
  readonly #context: WireContext;
  readonly #list = document.createElement("div");
  readonly #foot = document.createElement("div");
  readonly #streams = new Map<number, Stream>();
  #queue: HTMLElement[] = [];
  #frame = 0;
  #runId: string | null = null;
  #after = 0;
  #over = false;
  #say = "";
  /** Whether the end of the list is kept in sight: until its reader goes up or takes hold of something. */
  #following = true;
  /** Where the list last was, so that a scroll of its reader's downwards is told from the echo of one of ours. */
  #top = 0;

  constructor(context: WireContext) {
    this.#context = context;
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    context.root.adoptedStyleSheets = [...context.root.adoptedStyleSheets, sheet];
    const { element } = this;
    element.className = "wire";
    element.setAttribute("part", "wire");
    element.setAttribute("aria-label", "The wire");
    const head = document.createElement("div");
    render(this.#head(), head);
    Object.assign(this.#list, { className: "wire-list", tabIndex: 0 });
    this.#list.setAttribute("role", "group");
    this.#list.setAttribute("aria-label", "Frames, as they came");
    this.#list.addEventListener("scroll", this.#scrolled, { passive: true });
    const up = ({ deltaY }: WheelEvent) => deltaY < 0 && this.#list.scrollTop > 0 && (this.#following = false);
    this.#list.addEventListener("wheel", up, { passive: true });
    this.#list.addEventListener("pointerdown", () => (this.#following = false));
    this.#list.addEventListener("keydown", ({ key }) => {
      if (["ArrowUp", "PageUp", "Home"].includes(key)) this.#following = false;
    });
    this.#foot.className = "wire-foot";
    element.append(head, this.#list, this.#foot);
  }

  /** Show what there is, and what comes. */
  open(): void {
    const { wire } = this.#context;
    this.#clear();
    for (const entry of wire.entries) this.#take(entry);
    wire.onEntry = (entry) => (entry ? this.#take(entry) : this.#clear());
    this.#draw();
  }

  close(): void {
    this.#context.wire.onEntry = null;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#clear();
  }

  focus(): void {
    this.element.querySelector("button")?.focus();
  }

  #head() {
    return html`<div class="wire-head">
        <h2>The wire</h2>
        <button class="plug" @click=${this.#plug}>Pull the plug</button>
        <button aria-label="Close the wire" @click=${this.#context.close}>Close</button>
      </div>
      <p>
        What came over this conversation's connection, as it came. Pull the plug to break it off: the page comes back with the
        last id, and the reply goes on from there.
      </p>`;
  }

  #clear(): void {
    this.#streams.clear();
    this.#queue = [];
    this.#runId = null;
    this.#after = 0;
    this.#over = false;
    this.#say = "";
    this.#following = true;
    this.#list.replaceChildren();
    this.#schedule();
  }

  #take(entry: WireEntry): void {
    switch (entry.kind) {
      case "request": {
        this.#streams.set(entry.stream, { decoder: new TextDecoder(), text: "" });
        const resumed = entry.after > 0 ? `Resume after event ${entry.after}: ` : "";
        const header = entry.after > 0 ? `, Last-Event-ID: ${entry.after}` : "";
        return this.#event(entry.at, `${resumed}${entry.method} ${entry.url}${header}`, "out");
      }
      case "head":
        return this.#event(entry.at, `Answer ${entry.status}`, "in");
      case "end": {
        const stream = this.#streams.get(entry.stream);
        if (stream?.text) this.#line(entry.at, [0, stream.text], true);
        this.#streams.delete(entry.stream);
        return this.#event(entry.at, ENDS[entry.reason] ?? entry.reason, entry.reason === "over" ? "in" : "cut");
      }
      case "bytes": {
        let stream = this.#streams.get(entry.stream);
        if (!stream) this.#streams.set(entry.stream, (stream = { decoder: new TextDecoder(), text: "" }));
        const { frames, rest } = framesOf(stream.text + stream.decoder.decode(entry.bytes, { stream: true }));
        stream.text = rest;
        for (const frame of frames) this.#line(entry.at, frame, false);
      }
    }
  }

  /** Something that is no frame. */
  #event(at: number, words: string, kind: string): void {
    this.#add(row(`line ${kind}`, [["time", time(at)], ["words", words]]));
  }

  #line(at: number, [seq, text]: Frame, cut: boolean): void {
    const size = `${new TextEncoder().encode(text).length} B`;
    if (cut) {
      this.#add(row("line cut", [["time", time(at)], ["words", `Half a frame, dropped: ${shorten(text)}`], ["size", size]]));
      return;
    }
    if (text.startsWith(":")) {
      this.#add(row("line beat", [["time", time(at)], ["id", ""], ["event", "heartbeat"], ["data", text.trimEnd()], ["size", size]]));
      return;
    }
    const event = field(text, "event") ?? "";
    const data = field(text, "data") ?? text;
    const retry = field(text, "retry");
    if (event === "start") {
      this.#runId = /"run_id":"([^"]*)"/.exec(data)?.[1] ?? null;
      this.#over = false;
    }
    if (seq > 0) this.#after = seq;
    if (TERMINAL.has(event)) this.#over = true;
    const shown = (retry ? `retry: ${retry} · ` : "") + shorten(data);
    this.#add(row("line", [["time", time(at)], ["id", seq > 0 ? String(seq) : ""], ["event", event], ["data", shown], ["size", size]]));
  }

  #add(line: HTMLElement): void {
    this.#queue.push(line);
    if (this.#queue.length > LINES) this.#queue.shift();
    this.#schedule();
  }

  #schedule(): void {
    this.#frame ||= requestAnimationFrame(this.#draw);
  }

  readonly #draw = (): void => {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const list = this.#list;
    const fresh = this.#queue.length > 0;
    for (const line of this.#queue.splice(0)) {
      let block = list.lastElementChild;
      if (!block || block.childElementCount === BLOCK) {
        block = document.createElement("div");
        block.className = "block";
        list.append(block);
      }
      block.append(line);
    }
    while (list.childElementCount > LINES / BLOCK) list.firstElementChild!.remove();
    render(this.#footer(), this.#foot);
    if (this.#following) {
      list.scrollTop = list.scrollHeight;
      this.#top = list.scrollTop;
      // A block that comes into sight may be higher than was thought.
      if (fresh || !this.#atEnd) this.#schedule();
    }
  };

  /** Whoever comes back down to the end is followed again. */
  readonly #scrolled = (): void => {
    const { scrollTop } = this.#list;
    if (scrollTop > this.#top && this.#atEnd) this.#following = true;
    this.#top = scrollTop;
  };

  get #atEnd(): boolean {
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  #footer() {
    const curl = this.#curl;
    return html`<p role="status">${this.#say}</p>
      ${curl
        ? html`<details>
            <summary>Follow the same run from a terminal</summary>
            <pre tabindex="0" role="group" aria-label="Command"><code>${curl}</code></pre>
            <p>
              <button @click=${this.#copy}>Copy the command</button>
              The cookie says who you are, so no script may read it. Take it from the developer tools: Network, one of these
              requests, its request header Cookie.
            </p>
          </details>`
        : html`<p>Nothing has come yet. Ask something, and watch.</p>`}`;
  }

  get #curl(): string {
    if (!this.#runId) return "";
    const url = new URL(this.#context.api().eventsUrl(this.#runId), location.href).href;
    // After the end there is nothing to follow: then the whole log is asked for.
    const cursor = this.#after > 0 && !this.#over ? ` \\\n  -H 'Last-Event-ID: ${this.#after}'` : "";
    return `curl -N '${url.replaceAll("'", "%27")}'${cursor} \\\n  -H 'Cookie: …'`;
  }

  readonly #plug = (): void => {
    const cut = this.#context.plug();
    this.#say = cut > 0 ? "" : "There is no connection now: nothing is being written.";
    this.#schedule();
  };

  readonly #copy = async (): Promise<void> => {
    const copied = await toClipboard(this.#curl);
    this.#say = copied ? "The command is copied." : "The browser does not allow copying here. The command can be selected.";
    this.#schedule();
  };
}

function row(name: string, cells: [string, string][]): HTMLElement {
  const line = document.createElement("div");
  line.className = name;
  for (const [kind, text] of cells) {
    const cell = document.createElement("span");
    cell.className = kind;
    cell.textContent = text;
    line.append(cell, " ");
  }
  return line;
}

function shorten(text: string): string {
  return text.length <= SHOWN ? text : `${text.slice(0, SHOWN)}… (${text.length} characters)`;
}

function time(at: number): string {
  const date = new Date(at);
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
