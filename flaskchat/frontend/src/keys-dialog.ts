/** The list of the keys. */

import { html } from "lit";
import type { Body } from "./dialog.ts";
import { MAC } from "./keys.ts";

const letter = (each: string): string[] => (MAC ? ["Control", "Shift", each] : ["Alt", each]);
const control = MAC ? "⌘" : "Ctrl";

/** What is done, and the keys for it: each a stroke of keys held together. */
const GROUPS: [string, [string, string[][]][]][] = [
  [
    "Writing",
    [
      ["Send", [["Enter"]]],
      ["Break the line", [["Shift", "Enter"]]],
      ["Stop the reply", [["Esc"]]],
      ["Go to the message box", [letter("M")]],
      ["Copy the last reply", [letter("C")]],
    ],
  ],
  [
    "Conversations",
    [
      ["New conversation", [letter("N")]],
      ["Search", [["/"], [control, "K"]]],
      ["Show or hide the list", [letter("L")]],
      ["Move in the list", [["↑"], ["↓"]]],
      ["Rename", [["F2"]]],
      ["Delete the one in the list", [["Del"]]],
    ],
  ],
  ["Help", [["Show or hide the wire", [letter("W")]], ["These keys", [["?"], [control, "/"]]]]],
];

export const keysDialog: Body = () => html`<div class="keys">
  ${GROUPS.map(
    ([title, rows]) => html`<h3>${title}</h3>
      <dl>
        ${rows.map(
          ([what, strokes]) => html`<div>
            <dt>${what}</dt>
            <dd>
              ${strokes.map((keys, index) => html`${index ? " or " : ""}${keys.map((key, at) => html`${at ? "+" : ""}<kbd>${key}</kbd>`)}`)}
            </dd>
          </div>`,
        )}
      </dl>`,
  )}
</div>`;
