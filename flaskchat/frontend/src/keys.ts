/**
 * The keys of the chat, as commands. They work while the focus is inside the element, or nowhere on its own page. None of
 * them is a browser's: a plain sign is no key while one writes, and letters come with Alt, on a Mac with Control+Shift,
 * because Option writes signs there.
 */

export type Command = "keys" | "search" | "new" | "write" | "list" | "copy" | "rename" | "wire" | "escape";

export const MAC = /^(Mac|iP)/.test(globalThis.navigator?.platform ?? "");

const LETTERS: Record<string, Command> = { KeyN: "new", KeyM: "write", KeyL: "list", KeyC: "copy", KeyW: "wire" };

/** What a key stroke asks for. @param typing whether the focus is where one writes. */
export function commandOf(event: KeyboardEvent, typing: boolean, mac = MAC): Command | null {
  if (event.isComposing || event.keyCode === 229 || event.getModifierState("AltGraph")) return null;
  const { key, code, altKey: alt, ctrlKey: ctrl, metaKey: meta, shiftKey: shift } = event;
  if (!alt && !ctrl && !meta) {
    if (key === "Escape") return "escape";
    if (key === "F2" && !shift) return "rename";
    if (typing) return null;
    return key === "?" ? "keys" : key === "/" ? "search" : null;
  }
  if (alt ? !mac && !ctrl && !meta && !shift : mac && ctrl && shift && !meta) return LETTERS[code] ?? null;
  if (alt || shift || (mac ? ctrl || !meta : meta || !ctrl)) return null;
  return code === "KeyK" ? "search" : key === "/" ? "keys" : null;
}

/** Whether one points with a finger. Keys on a screen have no Shift+Enter, so Enter breaks the line there. */
export const touch = (): boolean => matchMedia("(pointer: coarse)").matches;

/** Whether a key stroke sends what is written. */
export function sends(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.altKey && (!touch() || event.ctrlKey || event.metaKey);
}

/** Whether keys write text where this event comes from. */
export function isTyping(event: Event): boolean {
  const target = event.composedPath()[0];
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}
