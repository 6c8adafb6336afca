/** How long a reply took, as the page saw it. Milliseconds. */

export interface Times {
  /** From the question to the first token, of reasoning or of text. */
  first: number | null;
  /** From the first token to the end. */
  rest: number | null;
  /** From the first token of reasoning to the first of text. */
  thought: number | null;
}

export class Timing implements Times {
  first: number | null = null;
  rest: number | null = null;
  thought: number | null = null;
  readonly #asked = performance.now();
  #thinking = false;

  /** What was seen at an earlier visit. */
  static of(times: Times | undefined): Timing | null {
    return times ? Object.assign(new Timing(), times) : null;
  }

  reasoning(): void {
    this.first ??= performance.now() - this.#asked;
    this.#thinking = true;
  }

  text(): void {
    const now = performance.now() - this.#asked;
    this.first ??= now;
    if (this.#thinking) this.thought ??= now - this.first;
  }

  end(): void {
    if (this.first === null) return;
    if (this.#thinking) this.text();
    this.rest = performance.now() - this.#asked - this.first;
  }
}
