/** The bundle's entry: registers `<flask-chat>`, once, however often the script is placed. */

import { FlaskChatElement } from "./element.ts";

if (!customElements.get("flask-chat")) customElements.define("flask-chat", FlaskChatElement);

export { FlaskChatElement };
