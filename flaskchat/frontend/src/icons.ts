/** The few pictures of the page. Each stands beside or inside something that has a name in words. */

import { svg } from "lit";
import type { SVGTemplateResult } from "lit";

const icon = (path: string): SVGTemplateResult => svg`<svg viewBox="0 0 24 24" aria-hidden="true"><path d=${path} /></svg>`;

export const menu = icon("M4 7h16M4 12h16M4 17h10");
export const plus = icon("M12 5v14M5 12h14");
export const up = icon("M12 19V5M5.5 11.5 12 5l6.5 6.5");
export const down = icon("M12 5v14M5.5 12.5 12 19l6.5-6.5");
export const square = icon("M7 7h10v10H7z");
export const dots = icon("M5 11.5v1M12 11.5v1M19 11.5v1");
export const back = icon("m14.5 6-6 6 6 6");
export const on = icon("m9.5 6 6 6-6 6");
