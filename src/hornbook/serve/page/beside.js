// Another model's answer to the same prompt, beside the first one's.
// In: the models that are served, and each request as the first one has it.  Out: the other's text as it comes.

import { complete } from "./api.js";
import { $, count, element } from "./parts.js";

export class Beside {
  #work = null;
  #told = ""; // what was asked for the text that stands there, whole

  constructor(changed) {
    this.changed = changed;
    $("beside").addEventListener("change", () => {
      this.#show();
      changed();
    });
  }

  get name() {
    return $("beside").value;
  }

  get isBusy() {
    return this.#work !== null;
  }

  // Any but the one that is talked to.
  offer(models, first, chosen) {
    const others = models.map(({ name }) => name).filter((name) => name !== first);
    $("beside").replaceChildren(
      new Option("alone", ""),
      ...others.map((name) => new Option(`beside ${name}`, name, false, name === chosen)),
    );
    $("beside").hidden = others.length === 0;
    this.#show();
  }

  async write(asked) {
    this.stop();
    const request = { ...asked, model: this.name, logprobs: 0 };
    $("other").classList.remove("stale");
    if (!this.name || this.#told === JSON.stringify(request)) return; // as when snapshots of the first one play
    this.#told = "";
    const mine = (this.#work = new AbortController());
    const text = document.createTextNode("");
    $("other-text").replaceChildren(element("b", "", asked.prompt), text);
    $("other-state").textContent = "";
    let tokens = 0;
    try {
      for await (const piece of complete(request, mine.signal)) {
        if (this.#work !== mine) return;
        text.data += piece.text;
        tokens += piece.tokens.length;
      }
      this.#told = JSON.stringify(request);
      $("other-state").textContent = `${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`;
    } catch (error) {
      if (this.#work === mine) $("other-state").textContent = error.message;
    } finally {
      if (this.#work === mine) {
        this.#work = null;
        this.changed();
      }
    }
  }

  stop() {
    this.#work?.abort();
    this.#work = null;
  }

  fade() {
    $("other").classList.add("stale");
  }

  #show() {
    this.stop();
    this.#told = "";
    $("other").hidden = !this.name;
    $("other").parentElement.classList.toggle("two", Boolean(this.name));
    $("other-name").textContent = this.name;
    $("other-text").textContent = $("other-state").textContent = "";
  }
}
