/**
 * What other tabs of this browser cannot know: that a reply was asked for here or has ended, or that a conversation was
 * changed. Says only which; what it is like now, each tab asks the server.
 */

/** @param run the reply's, where it is about one. */
export interface NewsItem {
  conversation: string;
  run: string | null;
}

export class News {
  readonly #name: string;
  readonly #heard: (item: NewsItem) => void;
  #channel: BroadcastChannel | null = null;

  /** @param heard called with what another tab tells. */
  constructor(endpoint: string, heard: (item: NewsItem) => void) {
    this.#name = `flaskchat/1 ${endpoint}/ news`;
    this.#heard = heard;
    this.open();
  }

  /** Also when the page comes back from where the browser kept it. */
  readonly open = (): void => {
    if (this.#channel || typeof BroadcastChannel === "undefined") return;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }: MessageEvent<Partial<NewsItem> | null>) => {
      // Anything of this origin can write to the channel.
      if (typeof data?.conversation === "string") this.#heard({ conversation: data.conversation, run: data.run ?? null });
    };
  };

  /** A page that has an open channel is not kept for Back by every browser. */
  readonly close = (): void => {
    this.#channel?.close();
    this.#channel = null;
  };

  readonly tell = (conversation: string, run: string | null = null): void => this.#channel?.postMessage({ conversation, run });
}
