/**
 * `<flask-chat>`: the chat as one custom element. Puts the parts together; what they do is theirs.
 *
 *     <flask-chat endpoint="/chat" conversation="c_…" model="parrot" page></flask-chat>
 *
 * Attributes (and properties of the same name)
 *   endpoint      the path under which the chat is mounted; "" for the root
 *   conversation  the conversation to show; absent: a new one. Follows what the reader opens
 *   model         the model to ask, unless the reader picks another
 *   page          this is the whole page: the address and the title follow the conversation, keys work everywhere
 *   compact       for a corner of a page: the list of conversations lies behind a button, whatever the width
 *   theme         auto (as the system is, the default), light, dark
 *   heartbeat     seconds between the server's heartbeats, where it is not 15
 *
 * Events; they bubble and cross shadow roots
 *   message-sent        the server has taken a question; detail: conversation, message, run (ids)
 *   run-finished        a reply that was followed has ended; detail: conversation, message, run, and status:
 *                       done | error | stopped | interrupted
 *   conversationchange  another conversation is shown, or a new one has been given its id; detail.id, null for a new one
 *   signed-out          the server has answered that nobody is signed in
 *
 * Custom properties; each holds in light and dark alike where it is set
 *   --flask-chat-background  --flask-chat-soft (side, questions)  --flask-chat-line (borders)
 *   --flask-chat-text  --flask-chat-dim (less important text)  --flask-chat-alarm (failures)
 *   --flask-chat-accent (links, buttons, focus)  --flask-chat-on-accent (text on it)
 *   --flask-chat-font  --flask-chat-mono (font families)
 *   --flask-chat-radius (of corners, 0.6rem)
 *   --flask-chat-width (of the text, 46rem)  --flask-chat-side (width of the list, 17rem)
 *   --flask-chat-height (of the element, 36rem; not with `page`)
 *
 * Parts, for `flask-chat::part(…)`
 *   sidebar  new  main  header  title  messages  question  reply  composer  input  menu  dialog
 */

import { html, LitElement, nothing } from "lit";
import type { PropertyValues, TemplateResult } from "lit";
import { Api } from "./api.ts";
import { Composer } from "./composer.ts";
import { copy } from "./copy.ts";
import { Drawing } from "./drawing.ts";
import { Following } from "./following.ts";
import { down } from "./icons.ts";
import { loadMarkdown } from "./markdown-lazy.ts";
import { Kept } from "./kept.ts";
import { leave, reloaded } from "./left.ts";
import { News } from "./news.ts";
import type { Theme } from "./panels.ts";
import type { Model } from "./protocol.ts";
import { Follower } from "./scroll.ts";
import { Session } from "./session.ts";
import { Shell } from "./shell.ts";
import { signIn } from "./sign-in.ts";
import { styles } from "./styles.ts";
import { Thread } from "./thread.ts";
import { fitToView } from "./view.ts";
import { failure, welcome } from "./welcome.ts";
import { WirePlace } from "./wire-place.ts";

export class FlaskChatElement extends LitElement {
  static override styles = styles;
  static override properties = {
    endpoint: {},
    conversation: {},
    model: {},
    page: { type: Boolean },
    compact: { type: Boolean },
    theme: { reflect: true },
    heartbeat: { type: Number },
  };

  declare endpoint: string;
  declare conversation: string | null;
  declare model: string | null;
  declare page: boolean;
  declare compact: boolean;
  declare theme: Theme;
  declare readonly renderRoot: ShadowRoot;
  declare heartbeat: number;

  #api!: Api;
  #session!: Session;
  #kept!: Kept;
  #following!: Following;
  #news!: News;
  readonly #wire = new WirePlace(this, {
    api: () => this.#api,
    plug: () => this.#session.plug(),
    home: () => this.#shell.home(),
    trouble: (words) => (this.#session.problem = words),
  });
  /** The conversation that is shown, or on its way: the attribute may be set by its host as well. */
  #shown: string | null = null;
  #models: Model[] = [];
  #announcement = "";
  #follower: Follower | null = null;
  /** For a screen reader, which says the same words again only if something has changed. */
  readonly #announce = (words: string): void => {
    this.#announcement = words === this.#announcement ? `${words}\u00a0` : words;
    this.requestUpdate();
  };
  readonly #drawing = new Drawing(() => this.#follower?.grown());

  readonly #composer = new Composer(this, {
    kept: () => this.#kept,
    send: (text) => {
      if (this.#session.missing) void this.#go(null); // nothing can be said in a conversation that is not there
      this.#session.send(text);
      this.#follower?.toEnd();
      this.requestUpdate();
    },
    stop: () => {
      const running = this.#session.running;
      if (running) this.#session.stop(running);
    },
    pick: (model) => (this.#session.model = model),
    choose: (button) => void this.#shell.use((panels) => panels.picker.open(button)),
  });

  readonly #shell = new Shell(this, {
    api: () => this.#api,
    session: () => this.#session,
    models: () => this.#models,
    pick: (model) => (this.#session.model = model),
    href: (id) => this.#href(id),
    open: (id) => this.#go(id),
    reveal: async (message) => {
      const entry = this.#session.reveal(message);
      this.#follower?.leave();
      await this.updateComplete;
      return entry && this.#thread.article(entry);
    },
    announce: this.#announce,
    write: () => this.#composer.focus(),
    wire: () => void this.#wire.toggle(),
  });

  readonly #thread = new Thread(this, {
    session: () => this.#session,
    view: (entry) => this.#drawing.view(entry),
    follower: () => this.#follower,
    copy: (text, button) => void this.#copy(text, button),
    kept: () => this.#kept,
    home: () => this.#shell.home(),
  });

  constructor() {
    super();
    this.endpoint = "";
    this.conversation = null;
    this.model = null;
    this.page = false;
    this.compact = false;
    this.theme = "auto";
    this.heartbeat = 15;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#api = new Api(this.endpoint);
    this.#kept = new Kept(this.#api.endpoint);
    this.#news = new News(this.#api.endpoint, ({ conversation, run }) => {
      this.#session.heard(conversation, run);
      this.#shell.heard();
    });
    this.#api.changed = this.#news.tell;
    this.#following = new Following({
      endpoint: this.#api.endpoint,
      fetch: this.#api.fetch,
      eventsUrl: (runId) => this.#api.eventsUrl(runId),
      heartbeat: this.heartbeat,
    });
    this.#session = new Session(
      this.#api,
      {
        onChange: () => this.requestUpdate(),
        onConversation: (id) => this.#named(id),
        onRun: () => this.#shell.ran(),
        onSignedOut: () => this.#tell("signed-out", {}),
        onNews: this.#news.tell,
        onSent: (ids) => this.#tell("message-sent", ids),
        onFinish: (end) => {
          this.#shell.tab.finished(end.status === "done");
          this.#tell("run-finished", end);
        },
        onAnnounce: this.#announce,
        onReturn: (text) => this.#composer.giveBack(text),
      },
      { heartbeat: this.heartbeat, kept: this.#kept, follow: this.#following.follow, keep: this.#following.keep, wire: this.#wire.wire },
    );
    this.#session.model = this.model;
    if (!navigator.onLine) this.#session.offline = true;
    for (const [target, type, listener] of this.#listeners) target.addEventListener(type, listener);
    const left = reloaded(this.#kept);
    this.#shown = this.conversation;
    if (this.conversation ?? left) void loadMarkdown();
    if (this.conversation === null && left !== null) void this.#reopen(left);
    else void this.#session.open(this.conversation);
    this.#shell.connected();
    void this.#loadModels();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    for (const [target, type, listener] of this.#listeners) target.removeEventListener(type, listener);
    this.#session.close();
    for (const writing of [this.#composer, this.#thread]) writing.flush();
    this.#following.close();
    this.#news.close();
    this.#wire.close();
    this.#shell.disconnected();
    this.#drawing.cancel();
  }

  readonly #listeners: [EventTarget, string, (event: Event) => void][] = [
    [window, "online", () => (this.#session.offline = false)],
    [window, "offline", () => (this.#session.offline = true)],
    [document, "visibilitychange", () => this.#looked()],
    [window, "focus", () => this.#looked()],
    [window, "storage", (event) => this.#session.sending.stored((event as StorageEvent).key)],
    [window, "pagehide", () => (this.#composer.flush(), this.#thread.flush(), this.#news.close(), leave(this.#kept, this.#shown))],
    [window, "pageshow", () => (this.#news.open(), this.#looked())],
    [window.visualViewport ?? window, "resize", () => this.page && fitToView(this)],
    [window, "popstate", () => this.page && this.#show(this.#idOf(location.pathname))],
  ];

  protected override firstUpdated(): void {
    const scroller = this.renderRoot.querySelector<HTMLElement>(".scroll")!;
    this.#follower = new Follower(scroller, () => this.requestUpdate());
    new ResizeObserver(() => {
      this.#follower?.grown();
      // The scrollbar's room is on both sides of the text; what is written stands in line with it.
      this.style.setProperty("--gutter", `${(scroller.offsetWidth - scroller.clientWidth) / 2}px`);
    }).observe(scroller);
    if (this.page && !matchMedia("(pointer: coarse)").matches) this.#composer.focus();
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has("model") && this.hasUpdated) this.#session.model = this.model;
    if (changed.has("conversation") && this.hasUpdated && this.conversation !== this.#shown) {
      void this.#show(this.conversation);
    }
  }

  /** A button that its own press takes away, as Send and Stop do, leaves the focus nowhere: it goes where one writes. */
  protected override update(changed: PropertyValues<this>): void {
    const focused = this.renderRoot.activeElement;
    super.update(changed);
    if (!focused || (focused.isConnected && !focused.matches(":disabled"))) return;
    // Whoever has a better place for it goes there as soon as this update is complete.
    setTimeout(() => {
      const now = this.renderRoot.activeElement;
      if (!now || now.matches(":disabled")) this.#shell.home();
    });
  }

  protected override updated(): void {
    this.#follower?.grown();
    this.#shell.updated();
  }

  protected override render(): TemplateResult {
    const session = this.#session;
    const { title } = session.conversation;
    const branch = session.conversation.branch;
    const running = session.running;
    const empty = branch.length === 0 && session.conversation.queue.items.length === 0 && !session.loading && !session.failure;
    // No space around it: a host that keeps white space would see lines of it.
    return html`<div class=${`app ${this.#shell.classes}`} role="region" aria-label="Chat" @click=${this.#click} @input=${loadMarkdown}>
        ${this.#shell.side()}
        <section class=${this.#wire.class} part="main" ?inert=${this.#shell.covered}>
          ${this.#shell.header(title || (empty ? "New conversation" : ""))}
          <div class="scroll" part="messages" tabindex="0" role="group" aria-label="Messages">
            <div class="column messages">
              ${session.loading ? html`<p class="words going">Loading the conversation…</p>` : nothing}
              ${session.failure ? failure(session, () => void session.open(this.conversation), () => void this.#go(null)) : nothing}
              ${empty ? welcome(session, this.#models) : nothing}
              ${this.#thread.render(branch)}
            </div>
          </div>
          <footer>
            <div class="column">
              ${this.#follower?.following === false
                ? html`<button class="end" @click=${this.#toEnd}>${down}<span>${running ? "Follow the reply" : "To the end"}</span></button>`
                : nothing}
              ${this.#shell.notice()}
              ${session.signedOut || session.problem
                ? html`<p class="problem" role="alert">${session.signedOut ? signIn() : session.problem}</p>`
                : nothing}
              ${this.#composer.render({
                conversation: this.conversation,
                running: running !== null && !running.stopping,
                models: this.#models,
                model: session.model ?? session.conversation.model ?? null,
                disabled: session.loading ? "Loading the conversation…" : session.missing ? "" : session.failure,
              })}
            </div>
          </footer>
          ${this.#wire.render()}
        </section>
        ${this.#shell.overlays()}
        <p class="unseen" role="status" aria-live="polite">${this.#announcement}</p>
      </div>`;
  }

  #href(id: string | null): string {
    return this.#api.url(id === null ? "/" : `/c/${encodeURIComponent(id)}`);
  }

  #idOf(path: string): string | null {
    const prefix = this.#api.url("/c/");
    return path.startsWith(prefix) ? decodeURIComponent(path.slice(prefix.length)) : null;
  }

  /** Show it, under its address. */
  #go(id: string | null): Promise<void> {
    const shown = this.#show(id);
    if (this.page && this.#href(id) !== location.pathname) history.pushState(null, "", this.#href(id));
    return shown;
  }

  #show(id: string | null): Promise<void> {
    if (id !== null) this.#session.model = this.model; // what was picked elsewhere is not this conversation's
    this.conversation = this.#shown = id;
    this.#announcement = "";
    const shown = this.#session.open(id);
    this.#follower?.toEnd();
    this.#tell("conversationchange", { id });
    return shown;
  }

  /**
   * Show what was shown before the page was reloaded: it was begun meanwhile, or the page has no address for it. A new
   * conversation, if that is not there.
   */
  async #reopen(id: string): Promise<void> {
    await this.#show(id);
    if (this.#shown !== id) return;
    if (this.#session.missing) await this.#show(null);
    else if (this.page) history.replaceState(null, "", this.#href(id));
  }

  /** The conversation on the page has been given its id. */
  #named(id: string): void {
    this.conversation = this.#shown = id;
    this.#composer.named(id);
    if (this.page) history.pushState(null, "", this.#href(id));
    this.#tell("conversationchange", { id });
  }

  /** For the host's page, which sees no further into the element than its events. */
  #tell(type: string, detail: object): void {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }

  #looked(): void {
    if (!document.hidden) this.#session.wake();
  }

  async #loadModels(): Promise<void> {
    try {
      this.#models = await this.#api.models();
      this.requestUpdate();
    } catch {
      // Only the choice is missing: the server has a default, and what else is wrong is said where it matters.
    }
  }

  readonly #toEnd = (): void => this.#follower?.toEnd();

  /** The Copy buttons of code blocks, which are no part of a template. */
  readonly #click = (event: Event): void => {
    const button = (event.target as Element).closest<HTMLElement>(".code .copy");
    const code = button?.closest(".code")?.querySelector("pre code");
    if (button && code) void this.#copy(code.textContent ?? "", button);
  };

  /** What the button says then is also heard. */
  async #copy(text: string, button: HTMLElement): Promise<void> {
    await copy(text, button);
    this.#announce(button.textContent!);
  }
}
