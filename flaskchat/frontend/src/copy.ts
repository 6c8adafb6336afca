/** To the clipboard, also where browsers do not give it away: over plain HTTP from another machine. */

/** @returns whether the text is there. */
export async function toClipboard(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No secure context, or not allowed: what is selected can be copied all the same.
  }
  let before = document.activeElement;
  while (before?.shadowRoot?.activeElement) before = before.shadowRoot.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.readOnly = true;
  area.style.position = "fixed";
  area.style.opacity = "0";
  (before?.closest("dialog") ?? document.body).append(area); // all else is inert while a dialog is open
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
    (before as HTMLElement | null)?.focus({ preventScroll: true });
  }
}

/** And say so on the button. */
export async function copy(text: string, button: HTMLElement): Promise<void> {
  const words = (await toClipboard(text)) ? "Copied" : "Not allowed here";
  const before = button.dataset["label"] ?? button.textContent?.trim() ?? "";
  button.dataset["label"] = before;
  button.textContent = words;
  setTimeout(() => (button.textContent = before), 1600);
}
