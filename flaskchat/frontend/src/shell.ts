/**
 * What stands around a conversation: the list beside it, the header above it, the keys, the tab's title and the theme.
 * What of that is not needed at first load is in `panels.ts`, which comes when it is used.
 */

import { html, nothing } from "lit";
import type { LitElement, TemplateResult } from "lit";
import type { Api } from "./api.ts";
import { dots, menu } from "./icons.ts";
import { commandOf, isTyping } from "./keys.ts";
import { ConversationList } from "./list.ts";
import type { Panels, Theme } from "./panels.ts";
import type { Model } from "./protocol.ts";
import type { Session } from "./session.ts";
import { Sidebar } from "./sidebar.ts";
import { TabTitle } from "./tab.ts";

type Host = LitElement & { renderRoot: ShadowRoot; page: boolean; compact: boolean; theme: Theme };

export interface ShellActions {
  api: () => Api;
  session: () => Session;
  models: () => Model[];
  pick: (model: string) => void;
  href: (id: string | null) => string;
  /** @returns when it is shown. */
  open: (id: string | null) => Promise<void>;
  /** Bring a message into the branch that is shown. @returns what it is on the page. */
  reveal: (message: string) => Promise<HTMLElement | null>;
  announce: (words: string) => void;
  /** Put the focus where one writes. */
  write: () => void;
  /** Show or hide what came over the connection. */
  wire: () => void;
}

/** After a conversation's first reply, until its title is looked for again. Milliseconds. */
const LATER = 4000;

/** Where the choice of light and dark is kept. */
const THEME = "flaskchat.theme";

export class Shell {
  readonly list: ConversationList;
  readonly sidebar: Sidebar;
  readonly tab = new TabTitle();
  panels: Panels | null = null;
  readonly #host: Host;
  readonly #actions: ShellActions;
  #loading: Promise<Panels> | null = null;
  /** The list lies over the conversation, where there is no room beside it. */
  #over = false;
  /** The list is not shown, where there would be room beside it. */
  #away = false;
  #wide = false;
  #trouble = false;
  #later: ReturnType<typeof setTimeout> | undefined;
  #watch: ResizeObserver | null = null;

  constructor(host: Host, actions: ShellActions) {
    this.#host = host;
    this.#actions = actions;
    this.list = new ConversationList(actions.api, {
      onChange: () => host.requestUpdate(),
      onTitle: (id, title) => this.#retitled(id, title),
      hidden: () => document.hidden,
    });
    this.sidebar = new Sidebar(this.list, {
      href: actions.href,
      open: (id) => void this.#open(id),
      panels: () => this.panels,
      use: (action) => void this.use(action),
    });
  }

  connected(): void {
    if (this.#host.page) {
      const kept = recall(THEME);
      if (kept === "light" || kept === "dark") this.#host.theme = kept;
    }
    for (const [target, type, listener] of this.#listeners) target.addEventListener(type, listener);
    if (!this.#host.compact) void this.list.refresh();
  }

  disconnected(): void {
    for (const [target, type, listener] of this.#listeners) target.removeEventListener(type, listener);
    this.#watch?.disconnect();
    this.#watch = null;
    this.panels?.leave();
    clearTimeout(this.#later);
    this.list.close();
  }

  readonly #listeners: [EventTarget, string, (event: Event) => void][] = [
    [document, "keydown", (event) => this.#key(event as KeyboardEvent)],
    [document, "visibilitychange", () => this.looked()],
    [window, "focus", () => this.looked()],
    [window, "pagehide", () => this.panels?.leave()],
  ];

  /** The page is looked at: show what it is like now. */
  looked(): void {
    if (document.hidden) return;
    this.tab.seen();
    if (!this.#host.compact || this.#over) void this.list.refresh();
  }

  /** After each update of the element. */
  updated(): void {
    const side = this.#host.renderRoot.querySelector(".side");
    if (!this.#watch && side) {
      this.#watch = new ResizeObserver(() => this.#measure(side));
      this.#watch.observe(this.#host);
    }
    if (this.#host.page) this.tab.show(this.#actions.session().conversation.title);
  }

  /** The style sheet decides whether the list stands beside the conversation. */
  #measure(side: Element): void {
    const wide = this.#away ? this.#host.clientWidth >= side.clientWidth * 3 : getComputedStyle(side).position === "static";
    if (wide === this.#wide) return;
    this.#wide = wide;
    this.#host.requestUpdate();
  }

  /** Do something with what is loaded when it is used. */
  async use(action: (panels: Panels) => void): Promise<void> {
    try {
      this.#loading ??= this.#load();
      action(await this.#loading);
    } catch (error) {
      if (this.panels) throw error;
      // No connection, or a newer version is installed, which has no such file. The next use tries again.
      this.#loading = null;
      this.#trouble = true;
      this.#host.requestUpdate();
    }
  }

  async #load(): Promise<Panels> {
    const { Panels } = await import("./panels.ts");
    const { session, models, pick, announce, api, reveal } = this.#actions;
    this.#trouble = false;
    this.panels = new Panels({
      host: this.#host,
      api,
      list: this.list,
      sidebar: this.sidebar,
      shown: () => session().conversation,
      ready: () => !session().loading && !session().failure,
      open: (id) => this.#open(id),
      show: (id) => void this.#actions.open(id),
      reveal,
      changed: (id, { title, system_prompt: prompt }) => {
        const { conversation } = session();
        if (conversation.id !== id) return;
        if (title !== undefined) conversation.title = title;
        if (prompt !== undefined) session().prompt(prompt ?? "");
        this.#host.requestUpdate();
      },
      models: () => ({ items: models(), picked: session().model ?? session().conversation.model }),
      pick: (model) => {
        pick(model);
        this.#host.requestUpdate();
      },
      announce: (words) => {
        announce(words);
        this.#host.requestUpdate();
      },
      home: () => this.home(),
      wire: () => this.#actions.wire(),
      theme: () => (this.#host.page ? this.#host.theme : null),
      setTheme: (theme) => {
        this.#host.theme = theme;
        keep(THEME, theme);
      },
    });
    return this.panels;
  }

  /** A reply has begun, has ended, or has brought a title. */
  ran(): void {
    void this.list.refresh();
    clearTimeout(this.#later);
    const { conversation, running } = this.#actions.session();
    // The title that a model gives to a new conversation may come after its first reply: then nobody tells us.
    if (!running && conversation.branch.length <= 2) this.#later = setTimeout(() => this.looked(), LATER);
  }

  #retitled(id: string, title: string): void {
    const { conversation } = this.#actions.session();
    if (conversation.id === id) conversation.title = title;
  }

  async #open(id: string | null): Promise<void> {
    this.#over = false;
    const shown = this.#actions.open(id);
    this.home();
    await shown;
  }

  /** Another tab has begun a reply, or changed a conversation. A tab that is not looked at asks when it is. */
  heard(): void {
    if (!document.hidden && this.list.loaded) void this.list.refresh();
  }

  /** Where the focus is never wrong: where one writes, but not where that would bring up a keyboard on the screen. */
  home(): void {
    void this.#host.updateComplete.then(() => {
      if (matchMedia("(pointer: coarse)").matches) this.#host.renderRoot.querySelector<HTMLElement>(".scroll")?.focus();
      else this.#actions.write();
    });
  }

  /** Of the conversation's title: a host's page has its own h1. */
  get #level(): number {
    return this.#host.page ? 1 : 2;
  }

  get classes(): string {
    return `${this.#over ? "open" : ""} ${this.#away ? "away" : ""}`;
  }

  /** Whether the list covers the conversation, which then cannot be used. */
  get covered(): boolean {
    return this.#over;
  }

  side(): TemplateResult {
    const { conversation, running, signedOut } = this.#actions.session();
    const { id, title } = conversation;
    return html`${this.sidebar.render({ id, title, running: running !== null, signedOut, heading: this.#over ? this.#level : 0 })}
      <div class="backdrop" @click=${this.#toggle}></div>`;
  }

  /** @param title the conversation's title, in words. */
  header(title: string): TemplateResult {
    return html`<header part="header">
      <button
        class="plain menu"
        aria-label="Conversations"
        aria-expanded=${this.#wide ? !this.#away : this.#over}
        @click=${this.#toggle}
      >
        ${menu}
      </button>
      <div class="title" part="title" role="heading" aria-level=${this.#level} dir="auto">${this.panels?.heading() ?? title}</div>
      <button class="plain dots" aria-label="Menu of this conversation" aria-haspopup="menu" @click=${this.#menu}>${dots}</button>
    </header>`;
  }

  notice(): TemplateResult | typeof nothing {
    if (this.#trouble) {
      return html`<p class="problem" role="alert">This part of the page could not be loaded. Try again, or reload the page.</p>`;
    }
    return this.panels?.notice() ?? nothing;
  }

  overlays(): TemplateResult | typeof nothing {
    return this.panels?.render() ?? nothing;
  }

  readonly #menu = (event: Event): void => {
    const button = event.currentTarget as HTMLElement;
    void this.use((panels) => panels.headerMenu(button));
  };

  readonly #toggle = (): void => {
    const root = this.#host.renderRoot;
    const inside = root.activeElement?.closest(".side, .backdrop");
    if (this.#wide) this.#away = !this.#away;
    else this.#over = !this.#over;
    this.#host.requestUpdate();
    if (this.#over && !this.list.loaded) void this.list.refresh();
    const to = this.#over ? ".new" : inside ? "header .menu" : null;
    if (to) void this.#host.updateComplete.then(() => root.querySelector<HTMLElement>(to)?.focus());
  };

  #key(event: KeyboardEvent): void {
    const inside = event.composedPath().includes(this.#host) || (this.#host.page && event.target === document.body);
    const command = inside && !event.defaultPrevented ? commandOf(event, isTyping(event)) : null;
    if (!command || (command === "escape" && !this.#escape())) return;
    event.preventDefault();
    const session = this.#actions.session();
    switch (command) {
      case "keys":
        return void this.use((panels) => panels.keys());
      case "rename":
        return void this.use((panels) => panels.renameShown());
      case "copy": {
        const last = session.conversation.branch.findLast((entry) => entry.role === "assistant" && entry.text);
        if (last) void this.use((panels) => void panels.copy(last.text));
        return;
      }
      case "search":
        if (this.#wide ? this.#away : !this.#over) this.#toggle();
        return void this.use(() => void this.#host.updateComplete.then(() => this.panels?.search.focus()));
      case "list":
        return this.#toggle();
      case "wire":
        return this.#actions.wire();
      case "new":
        return void this.#open(null);
      case "write":
        if (this.#over) this.#toggle();
        void this.#host.updateComplete.then(() => this.#actions.write());
    }
  }

  /** @returns whether there was anything to leave or to stop. */
  #escape(): boolean {
    const session = this.#actions.session();
    const running = session.running;
    if (this.#over) this.#toggle();
    else if (running) session.stop(running);
    else return false;
    return true;
  }
}

/** Storage may be forbidden, in a frame or by a setting: then nothing is kept. */
function recall(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name: string, value: string): void {
  try {
    localStorage.setItem(name, value);
  } catch {
    // As said above.
  }
}
