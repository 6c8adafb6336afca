/** A document for tests of code that makes nodes. */

import { parseHTML } from "linkedom";

const { document } = parseHTML("<!doctype html><html><body></body></html>");
Object.assign(globalThis, { document });
