/**
 * Everything about whole conversations that is not needed at first load: search, menus, renaming, deleting, the system
 * prompt, the choice among many models, the list of keys. Loaded when the first of it is used.
 */

import { html, nothing } from "lit";
import type { LitElement, TemplateResult } from "lit";
import type { Api } from "./api.ts";
import { toClipboard } from "./copy.ts";
import { Deletions } from "./deletions.ts";
import { Dialogs } from "./dialog.ts";
import { keysDialog } from "./keys-dialog.ts";
import { MAC } from "./keys.ts";
import type { ConversationList } from "./list.ts";
import { Menu } from "./menu.ts";
import type { MenuItem } from "./menu.ts";
import { ModelPicker } from "./models.ts";
import css from "./panels.css";
import type { Conversation, ConversationItem, Model } from "./protocol.ts";
import { Rename } from "./rename.ts";
import { Search } from "./search.ts";
import { promptDialog } from "./settings.ts";
import type { Sidebar } from "./sidebar.ts";

const WIRE_KEY = MAC ? "Control+Shift+W" : "Alt+W";

export type Theme = "auto" | "light" | "dark";

/** What the panels may know of the page, and ask of it. */
export interface Context {
  host: LitElement & { renderRoot: ShadowRoot };
  api: () => Api;
  list: ConversationList;
  sidebar: Sidebar;
  /** The conversation on the page. */
  shown: () => { id: string | null; title: string; systemPrompt: string };
  /** Whether what is on the page is there: a conversation that is still being read looks like a new one. */
  ready: () => boolean;
  /** Show a conversation, and go there with the focus. @returns when it is there. */
  open: (id: string | null) => Promise<void>;
  /** Bring a message of it into the branch that is shown. @returns what it is on the page. */
  reveal: (message: string) => Promise<HTMLElement | null>;
  /** Show a conversation; the focus and what lies over it stay. */
  show: (id: string | null) => void;
  /** The server has changed a conversation, or is about to. */
  changed: (id: string | null, fields: Partial<Pick<Conversation, "title" | "system_prompt">>) => void;
  models: () => { items: Model[]; picked: string | null };
  pick: (model: string) => void;
  announce: (words: string) => void;
  /** Put the focus where it is never wrong. */
  home: () => void;
  /** Show or hide what came over the connection. */
  wire: () => void;
  /** null where the host decides how the chat looks. */
  theme: () => Theme | null;
  setTheme: (theme: Theme) => void;
}

/** Something that happened to a whole conversation, above the composer. */
export interface Notice {
  words: string;
  label?: string;
  action?: () => void;
}

export class Panels {
  readonly search: Search;
  readonly rename: Rename;
  readonly deletions: Deletions;
  readonly menu: Menu;
  readonly dialogs: Dialogs;
  readonly picker: ModelPicker;
  readonly #context: Context;
  #notice: Notice | null = null;

  constructor(context: Context) {
    this.#context = context;
    const { host } = context;
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    host.renderRoot.adoptedStyleSheets = [...host.renderRoot.adoptedStyleSheets, sheet];
    const notice = (notice: Notice | null): void => {
      this.#notice = notice;
      if (notice) context.announce(notice.words);
      host.requestUpdate();
    };
    this.menu = new Menu(context);
    this.picker = new ModelPicker(context);
    this.dialogs = new Dialogs(context);
    this.search = new Search(context, (item) => this.row(item));
    this.rename = new Rename(context, notice, this.search);
    this.deletions = new Deletions(context, notice);
  }

  /** What stands in place of a conversation's row, if anything does. */
  row(item: ConversationItem): TemplateResult | null {
    return this.deletions.row(item) ?? this.rename.input(item.id, "row");
  }

  /** What stands in place of the conversation's title in the header. */
  heading(): TemplateResult | null {
    return this.rename.input(this.#context.shown().id, "header");
  }

  /** Above the composer. */
  notice(): TemplateResult | null {
    const notice = this.#notice;
    if (!notice) return null;
    return html`<p class="notice">
      <span>${notice.words}</span>
      ${notice.action ? html`<button class="undo" @click=${notice.action}>${notice.label}</button>` : nothing}
      <button class="quiet" @click=${this.#dismiss}>Dismiss</button>
    </p>`;
  }

  /** Over everything else. */
  render(): TemplateResult {
    return html`${this.menu.render()}${this.picker.render()}${this.dialogs.render()}`;
  }

  rowMenu(button: HTMLElement, item: ConversationItem): void {
    this.menu.open(button, `Options for “${item.title || "Untitled"}”`, [
      { label: "Rename", key: "F2", action: () => this.rename.begin(item.id, item.title, "row") },
      ...this.#exports(item.id),
      { label: "Delete", key: "Del", alarm: true, action: () => this.remove(item, "row") },
    ]);
  }

  headerMenu(button: HTMLElement): void {
    const { id, title } = this.#context.shown();
    const item = id === null ? null : { id, title };
    const theme = this.#context.theme();
    const prompt = { label: "System prompt…", action: () => this.prompt() };
    this.menu.open(button, "This conversation", [
      ...(item
        ? [
            { label: "Rename", key: "F2", action: () => this.renameShown() },
            prompt,
            ...this.#exports(item.id),
            { label: "Delete", alarm: true, action: () => this.remove(item, "header") },
            { separator: true as const },
          ]
        : this.#context.ready()
          ? [prompt, { separator: true as const }]
          : []),
      ...(theme
        ? [
            ...(["auto", "light", "dark"] as const).map((each) => ({
              label: { auto: "Colours of the system", light: "Light colours", dark: "Dark colours" }[each],
              checked: each === theme,
              action: () => this.#context.setTheme(each),
            })),
            { separator: true as const },
          ]
        : []),
      { label: "The wire", key: WIRE_KEY, action: () => this.#context.wire() },
      ...(matchMedia("(hover: none)").matches ? [] : [{ label: "Keys", key: "?", action: () => this.keys() }]),
    ]);
  }

  renameShown(): void {
    const { id, title } = this.#context.shown();
    if (id !== null) this.rename.begin(id, title, "header");
  }

  remove(item: Pick<ConversationItem, "id" | "title">, where: "row" | "header"): void {
    this.deletions.remove(item, where);
  }

  prompt(): void {
    const { id, systemPrompt } = this.#context.shown();
    this.dialogs.open("System prompt", promptDialog(systemPrompt, async (text) => {
      // A new conversation takes it along with its first message.
      if (id !== null) await this.#context.api().change(id, { system_prompt: text || null });
      this.#context.changed(id, { system_prompt: text || null });
      this.#context.announce(text ? "The system prompt is saved." : "The system prompt is taken away.");
    }, this.dialogs.close, () => this.#context.host.requestUpdate()));
  }

  keys(): void {
    this.dialogs.open("Keys", keysDialog);
  }

  async copy(text: string): Promise<void> {
    this.say((await toClipboard(text)) ? "The last reply is copied." : "The browser does not allow copying here.");
  }

  /** Words that stand above the composer for a moment. */
  say(words: string): void {
    const notice: Notice = { words };
    this.#notice = notice;
    this.#context.announce(words);
    this.#context.host.requestUpdate();
    setTimeout(() => {
      if (this.#notice === notice) this.#dismiss();
    }, 4000);
  }

  /** The page goes away, or the element does. */
  leave(): void {
    this.deletions.flush(true);
  }

  #exports(id: string): MenuItem[] {
    const api = this.#context.api();
    return [
      { label: "Export as Markdown", href: api.exportUrl(id, "markdown") },
      { label: "Export as JSON", href: api.exportUrl(id, "json") },
    ];
  }

  readonly #dismiss = (): void => {
    const root = this.#context.host.renderRoot;
    const focused = root.activeElement?.closest(".notice");
    this.#notice = null;
    this.#context.host.requestUpdate();
    if (focused) this.#context.home();
  };
}
