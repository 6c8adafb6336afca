/** What stands where nobody is signed in. How one signs in is the server's business, or the host's page's: it leads there. */

import { html } from "lit";
import type { TemplateResult } from "lit";

export function signIn(): TemplateResult {
  return html`You are not signed in. <button @click=${() => location.reload()}>Sign in</button>`;
}
