/** The styles of the shadow root, as constructed stylesheets: a strict `style-src 'self'` allows them. */

import chat from "./chat.css";
import composer from "./composer.css";
import { replyStyles } from "./markdown-lazy.ts";
import side from "./side.css";
import thread from "./thread.css";

function sheet(css: string): CSSStyleSheet {
  const made = new CSSStyleSheet();
  made.replaceSync(css);
  return made;
}

export const styles = [sheet(chat), sheet(side), sheet(composer), sheet(thread), replyStyles];
