import { Problem } from "./protocol.ts";

/** Why something could not be done, as a sentence. */
export function why(error: unknown): string {
  return error instanceof Problem ? error.message : "There is no connection.";
}
