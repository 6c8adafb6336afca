/** The messages of the branch that is shown, and those that wait to be sent: what is around their texts. */

import { html, nothing } from "lit";
import type { LitElement, TemplateResult } from "lit";
import { repeat } from "lit/directives/repeat.js";
import type { Conversation, Entry } from "./conversation.ts";
import { Drafts } from "./drafts.ts";
import type { EditorActions } from "./editor.ts";
import { back, on } from "./icons.ts";
import type { Kept } from "./kept.ts";
import type { ReplyView } from "./message.ts";
import type { Item } from "./queue.ts";
import type { Follower } from "./scroll.ts";
import type { Session } from "./session.ts";
import { endWords, runningWords, span } from "./words.ts";

export interface ThreadActions {
  session: () => Session;
  view: (entry: Entry) => ReplyView;
  follower: () => Follower | null;
  copy: (text: string, button: HTMLElement) => void;
  kept: () => Kept;
  /** Put the focus where it is never wrong. */
  home: () => void;
}

/** What is loaded when it is used. */
type Extras = typeof import("./editor.ts") & typeof import("./details.ts");

type Host = LitElement & { renderRoot: ShadowRoot };

export class Thread {
  readonly #host: Host;
  readonly #actions: ThreadActions;
  /** The question or waiting message that is being edited. */
  #editing: Entry | Item | null = null;
  /** What its editor began with: its text, or what was written there when the page or the conversation was left. */
  #before = "";
  readonly #edits: Drafts<{ id: string; text: string }>;
  #shown: Conversation | null = null;
  readonly #detailed = new Set<Entry>();
  #extras: Extras | null = null;

  constructor(host: Host, actions: ThreadActions) {
    this.#host = host;
    this.#actions = actions;
    this.#edits = new Drafts(actions.kept, "edit");
  }

  /** Keep what is written: the page may go away. */
  flush(): void {
    this.#edits.flush();
  }

  render(branch: readonly Entry[]): TemplateResult {
    const { conversation } = this.#actions.session();
    if (this.#shown !== conversation) this.#editing = null;
    this.#shown = conversation;
    const { waiting } = conversation.queue;
    const editing = this.#editing;
    // What another tab sends meanwhile takes no editor away.
    if (editing && !("key" in editing) && !conversation.queue.get(editing.id)) waiting.push(editing);
    return html`${repeat(
      branch,
      (entry) => entry.key,
      (entry) => (entry.role === "user" ? this.#question(entry) : this.#reply(entry, entry === branch.at(-1))),
    )}${repeat(
      waiting,
      (item) => item.id,
      (item) => this.#waiting(item),
    )}`;
  }

  #question(entry: Entry): TemplateResult {
    const editing = this.#editing === entry;
    return html`<article class="message user" aria-label="You" data-key=${entry.key}>
      <h2 class="unseen">You</h2>
      ${editing && this.#extras
        ? this.#extras.editor(this.#before, "Edit your message", this.#editor(entry))
        : html`<div class="bubble" part="question" dir="auto">${entry.text}</div>
            <div class="actions">
              ${this.#walk(entry)}
              ${entry.id
                ? html`<button class="quiet edit" @click=${() => void this.#edit(entry)}>Edit</button>`
                : nothing}
              ${this.#copy(entry)}
            </div>`}
    </article>`;
  }

  #reply(entry: Entry, last: boolean): TemplateResult {
    const { running, timing } = entry;
    const words = running ? runningWords(entry) : endWords(entry);
    const trouble = entry.status === "error" || entry.status === "interrupted" || entry.connection?.phase === "waiting";
    const view = this.#actions.view(entry);
    const thought = timing && timing.thought !== null ? `Thought for ${timing.thought < 950 ? "a moment" : span(timing.thought)}` : "Reasoning";
    return html`<article class="message reply" part="reply" aria-label="Reply" aria-busy=${running} data-key=${entry.key}>
      <h2 class="unseen">Reply</h2>
      ${entry.reasoning
        ? html`<details class="reasoning">
            <summary>${running && !entry.text ? "Thinking" : thought}</summary>
            <div class="thoughts" dir="auto">${view.reasoning}</div>
          </details>`
        : nothing}
      ${view.text.node}
      ${words ? html`<p class=${`words ${trouble ? "trouble" : ""} ${running ? "going" : ""}`}>${words}</p>` : nothing}
      ${running ? (entry.text && !words ? html`<div class="actions"></div>` : nothing) : this.#buttons(entry, last)}
      ${this.#detailed.has(entry) && this.#extras ? this.#extras.details(entry) : nothing}
    </article>`;
  }

  #buttons(entry: Entry, last: boolean): TemplateResult {
    const session = this.#actions.session();
    const cut = entry.status === "stopped" || entry.status === "interrupted";
    const failed = cut || entry.status === "error";
    const asks = last && entry.id && !session.signedOut;
    const again = (): void => {
      session.regenerate(entry);
      this.#actions.follower()?.toEnd();
    };
    return html`<div class="actions">
      ${asks && cut ? html`<button @click=${() => session.continue(entry)}>Continue</button>` : nothing}
      ${asks && failed ? html`<button @click=${again}>Try again</button>` : nothing}
      ${this.#walk(entry)} ${entry.text ? this.#copy(entry) : nothing}
      ${entry.id && !(last && failed) ? html`<button class="quiet" @click=${again}>Regenerate</button>` : nothing}
      ${entry.id
        ? html`<button class="quiet" aria-expanded=${this.#detailed.has(entry)} @click=${() => void this.#detail(entry)}>Details</button>`
        : nothing}
    </div>`;
  }

  #copy(entry: Entry): TemplateResult {
    return html`<button class="quiet" @click=${(event: Event) => this.#actions.copy(entry.text, event.currentTarget as HTMLElement)}>
      Copy
    </button>`;
  }

  /** `2 / 3`, with arrows to the others. */
  #walk(entry: Entry): TemplateResult | typeof nothing {
    const siblings = this.#actions.session().conversation.siblings(entry);
    if (siblings.length < 2) return nothing;
    const at = siblings.indexOf(entry);
    const button = (step: 1 | -1, name: string, picture: TemplateResult | unknown): TemplateResult => html`<button
      class=${`quiet step ${step < 0 ? "back" : "on"}`}
      aria-label=${name}
      aria-disabled=${!siblings[at + step]}
      @click=${() => this.#step(entry, step)}
    >
      ${picture}
    </button>`;
    return html`<span class="walk" role="group" aria-label=${`Version ${at + 1} of ${siblings.length}`}>
      ${button(-1, "Previous version", back)}<span>${at + 1} / ${siblings.length}</span>${button(1, "Next version", on)}
    </span>`;
  }

  /** To another version, which comes to stand where this one stood; the focus goes with it. */
  #step(entry: Entry, step: 1 | -1): void {
    const top = this.article(entry)?.getBoundingClientRect().top;
    this.#actions.follower()?.leave();
    const next = this.#actions.session().walk(entry, step);
    void this.#host.updateComplete.then(() => {
      const article = this.article(next);
      if (article && top !== undefined) {
        article.closest(".scroll")!.scrollTop += article.getBoundingClientRect().top - top;
      }
      article?.querySelector<HTMLElement>(step < 0 ? ".step.back" : ".step.on")?.focus({ preventScroll: true });
    });
  }

  /** What a message is on the page. */
  article(entry: Entry): HTMLElement | null {
    return this.#host.renderRoot.querySelector(`[data-key="${entry.key}"]`);
  }

  #waiting(item: Item): TemplateResult {
    const { sending } = this.#actions.session();
    const waits = sending.waits(item);
    const words = {
      failed: item.why,
      held: "Held back, because the reply before it did not come to its end.",
      behind: "Queued. It is sent after the message above.",
      queued: "Queued. It is sent when the reply has ended.",
    }[waits];
    if (this.#editing?.id === item.id && this.#extras) {
      return html`<div class="user">${this.#extras.editor(this.#before, "Edit the waiting message", this.#editor(item))}</div>`;
    }
    return html`<div class="user waiting" role="group" aria-label="Not sent yet">
      <div class="bubble" dir="auto">${item.text}</div>
      <p class=${`words ${waits === "failed" ? "trouble" : ""}`} role=${waits === "failed" ? "alert" : nothing}>${words}</p>
      <div class="actions">
        ${waits === "queued" || waits === "behind"
          ? nothing
          : html`<button @click=${() => sending.retry(item)}>${waits === "failed" ? "Send again" : "Send now"}</button>`}
        <button class="quiet edit" @click=${() => void this.#edit(item)}>Edit</button>
        <button
          class="quiet"
          @click=${() => {
            sending.withdraw(item);
            this.#actions.home();
          }}
        >
          Withdraw
        </button>
      </div>
    </div>`;
  }

  #editor(what: Entry | Item): EditorActions {
    const { sending, conversation } = this.#actions.session();
    const entry = "key" in what ? what : null;
    const done = (): void => {
      this.#editing = null;
      this.#edits.keep(conversation.id, null);
      sending.hold(null);
      this.#host.requestUpdate();
      void this.#host.updateComplete.then(() => {
        const button = entry && this.article(entry)?.querySelector<HTMLElement>(".edit");
        if (button) button.focus();
        else this.#actions.home();
      });
    };
    return {
      note: entry ? "What was said before is kept: this becomes another version." : "",
      written: (text) => this.#edits.keep(conversation.id, { id: what.id!, text }),
      send: (text) => {
        if (!entry) sending.edit(what as Item, text);
        else {
          this.#actions.session().send(text, entry.parent);
          this.#actions.follower()?.toEnd();
        }
        done();
      },
      cancel: done,
    };
  }

  async #edit(what: Entry | Item): Promise<void> {
    const { sending, conversation } = this.#actions.session();
    sending.hold("key" in what ? null : what.id);
    if (!(await this.#load())) return sending.hold(null);
    if (conversation !== this.#shown) return;
    const left = this.#edits.of(conversation.id);
    this.#before = left && left.id === what.id ? left.text : what.text;
    this.#editing = what;
    this.#host.requestUpdate();
    await this.#host.updateComplete;
    const area = this.#host.renderRoot.querySelector<HTMLTextAreaElement>(".editor textarea");
    area?.focus();
    area?.setSelectionRange(area.value.length, area.value.length);
  }

  async #detail(entry: Entry): Promise<void> {
    if (!this.#detailed.delete(entry) && (await this.#load())) this.#detailed.add(entry);
    this.#host.requestUpdate();
  }

  async #load(): Promise<boolean> {
    try {
      this.#extras ??= { ...(await import("./editor.ts")), ...(await import("./details.ts")) };
      return true;
    } catch {
      this.#actions.session().problem = "This part of the page could not be loaded. Try again, or reload the page.";
      this.#host.requestUpdate();
      return false;
    }
  }
}
