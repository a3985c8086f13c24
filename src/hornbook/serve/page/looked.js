// What the model looked at when it chose a token: attention, by layer and head.
// In: what was asked for, and a token of the answer.  Out: the text before it, shaded by weight, and the most of it in
// figures; in the sheet of a phone, which a popover would hide, also what was considered. The server computes it anew for
// each token and layer, so nothing is asked for until the reader wants it.

import { look } from "./api.js";
import { bar, tellPiece } from "./answer.js";
import { $, count, element } from "./parts.js";

const MOST = 5; // in figures
const PAUSE_MS = 120; // on a token that the mouse passes over

export class Looked {
  #place = null; // {model, prompt, ids} that came before the token, and the token's text
  #told = null; // what the server said of it
  #work = null;
  #waiting = 0;

  constructor() {
    $("look").addEventListener("change", () => this.#turn());
    $("layer").addEventListener("change", () => this.#ask());
    $("head").addEventListener("change", () => this.#draw());
  }

  // `pieces` as they stand in the answer, of which the i-th is meant; of several tokens in it, the first. Whether all
  // that is to be told of it is told here.
  at({ model, prompt }, pieces, i) {
    const ids = pieces.slice(0, i).flatMap(({ tokens }) => tokens.map(({ id }) => id));
    this.#place = { model, prompt, ids, text: pieces[i].text };
    clearTimeout(this.#waiting);
    $("looked-considered").replaceChildren(...tellPiece(pieces[i]));
    if ($("look").checked) this.#waiting = setTimeout(() => this.#ask(), PAUSE_MS);
    const here = $("look").checked && isInSheet();
    if (here) this.#reveal();
    return here;
  }

  // Another answer stands there now.
  forget() {
    this.#stop();
    this.#place = this.#told = null;
    $("looked-considered").replaceChildren();
    this.#draw();
  }

  #reveal() {
    $("looked").scrollIntoView({ block: isInSheet() ? "start" : "nearest" });
  }

  #turn() {
    $("looked").hidden = !$("look").checked;
    if (!$("look").checked) return this.#stop();
    this.#reveal();
    this.#ask();
  }

  #stop() {
    clearTimeout(this.#waiting);
    this.#work?.abort();
    this.#work = null;
  }

  async #ask() {
    this.#stop();
    if (!this.#place) return this.#draw();
    const mine = (this.#work = new AbortController());
    const { text, ...asked } = this.#place;
    const layer = $("layer").value && { layer: Number($("layer").value) };
    try {
      const told = await look({ ...asked, ...layer }, mine.signal);
      if (this.#work !== mine) return;
      this.#told = { ...told, text };
      this.#draw();
    } catch (error) {
      if (this.#work === mine) $("looked-state").textContent = error.message;
    } finally {
      if (this.#work === mine) this.#work = null;
    }
  }

  #draw() {
    const told = this.#told;
    $("looked-text").hidden = $("looked-most").hidden = !told;
    if (!told) return void ($("looked-state").textContent = "Point at a token of the answer, tap it, or walk to it.");
    offer($("layer"), told.layers);
    offer($("head"), told.weights.length);
    const weights = $("head").value ? told.weights[Number($("head").value)] : mean(told.weights);
    const most = Math.max(...weights);
    const spans = told.tokens.map((text, i) => {
      const span = element("span", "", text.startsWith("bytes:") ? "▯" : text);
      span.style.setProperty("--weight", Math.sqrt(weights[i] / most).toFixed(3));
      return span;
    });
    $("looked-text").replaceChildren(...spans, element("b", "", told.text));
    $("looked-text").scrollTop = $("looked-text").scrollHeight;
    const places = weights.map((_, i) => i).sort((a, b) => weights[b] - weights[a]);
    $("looked-most").replaceChildren(...places.slice(0, MOST).map((i) => bar([told.tokens[i], weights[i]], false)));
    $("looked-state").textContent = told.forgotten ? `The first ${count(told.forgotten)} tokens were not seen.` : "";
  }
}

// The settings lie over the text, and are open; where there is room they stand beside it.
const isInSheet = () => $("settings").getAttribute("aria-expanded") === "true" && $("settings").offsetParent !== null;
const mean = (heads) => heads[0].map((_, i) => heads.reduce((sum, head) => sum + head[i], 0) / heads.length);

// The mean, and each of so many.
function offer(select, many) {
  if (select.options.length === many + 1) return;
  const chosen = select.value;
  select.replaceChildren(
    new Option("mean", ""),
    ...Array.from({ length: many }, (_, i) => new Option(i + 1, i, false, String(i) === chosen)),
  );
}
