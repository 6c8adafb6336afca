/** Code as coloured nodes. Loaded when a reply holds code in a language that is known; each language is a file. */

import core from "highlight.js/lib/core";
import type { LanguageFn } from "highlight.js";

type Grammar = () => Promise<{ default: LanguageFn }>;

/** Each by its literal name: that is how the bundler finds them. */
const GRAMMARS: Record<string, Grammar> = {
  bash: () => import("highlight.js/lib/languages/bash"),
  c: () => import("highlight.js/lib/languages/c"),
  cpp: () => import("highlight.js/lib/languages/cpp"),
  csharp: () => import("highlight.js/lib/languages/csharp"),
  css: () => import("highlight.js/lib/languages/css"),
  diff: () => import("highlight.js/lib/languages/diff"),
  dockerfile: () => import("highlight.js/lib/languages/dockerfile"),
  go: () => import("highlight.js/lib/languages/go"),
  graphql: () => import("highlight.js/lib/languages/graphql"),
  ini: () => import("highlight.js/lib/languages/ini"),
  java: () => import("highlight.js/lib/languages/java"),
  javascript: () => import("highlight.js/lib/languages/javascript"),
  json: () => import("highlight.js/lib/languages/json"),
  kotlin: () => import("highlight.js/lib/languages/kotlin"),
  lua: () => import("highlight.js/lib/languages/lua"),
  makefile: () => import("highlight.js/lib/languages/makefile"),
  markdown: () => import("highlight.js/lib/languages/markdown"),
  nginx: () => import("highlight.js/lib/languages/nginx"),
  perl: () => import("highlight.js/lib/languages/perl"),
  pgsql: () => import("highlight.js/lib/languages/pgsql"),
  php: () => import("highlight.js/lib/languages/php"),
  powershell: () => import("highlight.js/lib/languages/powershell"),
  python: () => import("highlight.js/lib/languages/python"),
  r: () => import("highlight.js/lib/languages/r"),
  ruby: () => import("highlight.js/lib/languages/ruby"),
  rust: () => import("highlight.js/lib/languages/rust"),
  scss: () => import("highlight.js/lib/languages/scss"),
  sql: () => import("highlight.js/lib/languages/sql"),
  swift: () => import("highlight.js/lib/languages/swift"),
  typescript: () => import("highlight.js/lib/languages/typescript"),
  xml: () => import("highlight.js/lib/languages/xml"),
  yaml: () => import("highlight.js/lib/languages/yaml"),
};

/** What of highlight.js's scopes looks different, by the first word of their names. */
const LOOKS: Record<string, string> = {
  keyword: "k", "selector-tag": "k", tag: "k", name: "k", section: "k", doctag: "k",
  string: "s", regexp: "s", quote: "c", addition: "s", link: "s", code: "s",
  comment: "c", meta: "c", deletion: "d",
  number: "n", literal: "n", symbol: "n", bullet: "n", char: "n", "template-variable": "n", variable: "n",
  title: "t", attr: "a", attribute: "a", property: "a", type: "a", built_in: "a", class: "a",
  "selector-class": "t", "selector-id": "t", "selector-attr": "a", "selector-pseudo": "a",
};

/** Takes the place of highlight.js's emitter, which builds a tree to be written as markup: this one builds nodes. */
class Nodes {
  readonly root = document.createDocumentFragment();
  readonly #open: Node[] = [this.root];

  addText(text: string): void {
    if (text) this.#open.at(-1)!.appendChild(document.createTextNode(text));
  }

  startScope(scope: string): void {
    const look = LOOKS[scope.split(".", 1)[0]!];
    if (!look) {
      this.#open.push(this.#open.at(-1)!);
      return;
    }
    const node = document.createElement("span");
    node.className = `hl-${look}`;
    this.#open.at(-1)!.appendChild(node);
    this.#open.push(node);
  }

  endScope(): void {
    if (this.#open.length > 1) this.#open.pop();
  }

  openNode(scope: string): void {
    this.startScope(scope);
  }

  closeNode(): void {
    this.endScope();
  }

  closeAllNodes(): void {
    this.#open.length = 1;
  }

  __addSublanguage(inner: Nodes): void {
    this.#open.at(-1)!.appendChild(inner.root);
  }

  finalize(): void {
    this.closeAllNodes();
  }

  toHTML(): string {
    return "";
  }
}

core.configure({ __emitter: Nodes } as never);

/** `code` in `language` as nodes; rejects where the language cannot be loaded. */
export async function highlight(code: string, language: string): Promise<DocumentFragment> {
  await learn(language);
  // What is inside a page's <script> and <style>.
  if (language === "xml" && /<script|<style/i.test(code)) await Promise.all([learn("javascript"), learn("css")]);
  const result = core.highlight(code, { language, ignoreIllegals: true }) as unknown as { _emitter: Nodes };
  return result._emitter.root;
}

async function learn(language: string): Promise<void> {
  if (core.getLanguage(language)) return;
  const { default: grammar } = await GRAMMARS[language]!();
  core.registerLanguage(language, grammar);
}
