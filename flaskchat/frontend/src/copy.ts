/** To the clipboard, and say so on the button. Browsers give the clipboard to secure contexts only. */
export async function copy(text: string, button: HTMLElement): Promise<void> {
  let words = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    words = "Not allowed here";
  }
  const before = button.dataset["label"] ?? button.textContent?.trim() ?? "";
  button.dataset["label"] = before;
  button.textContent = words;
  setTimeout(() => (button.textContent = before), 1600);
}
