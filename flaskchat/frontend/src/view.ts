/** The part of the window that a keyboard on the screen leaves. */

/** Pixels: smaller differences are a browser's own bars. */
const KEYBOARD = 100;

/**
 * Fit the page into what can be seen. Most browsers make the window smaller themselves (`interactive-widget` in the
 * page's head); Safari lays its keyboard over it.
 */
export function fitToView(host: HTMLElement): void {
  const view = window.visualViewport;
  // A reader who has zoomed in sees a part of the page because they want to.
  const covered = view !== null && view.scale === 1 && window.innerHeight - view.height > KEYBOARD;
  host.style.height = covered ? `${view.height}px` : "";
  if (covered) window.scrollTo(0, 0);
}
