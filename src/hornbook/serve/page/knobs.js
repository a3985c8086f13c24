// How the model is to write: a slider and a figure for each setting.
// In: what the reader moves or types, or the address's words.  Out: settings as the server knows them.

import { $, element, explained, showFilled } from "./parts.js";

// A figure may go up to `most` where its slider ends earlier.
const KNOBS = [
  {
    name: "temperature",
    label: "Temperature",
    word: "temperature",
    note: "0: the likeliest",
    value: 0.8,
    least: 0,
    end: 2,
    step: 0.05,
    most: 100,
    about:
      "How bold the model is. At each place it has a probability for every token, and one is drawn. Low temperatures " +
      "favour the likely ones, so that texts become safe and repeat themselves; above 1 they become wild.",
  },
  {
    name: "top_k",
    label: "Top-k",
    word: "top-k",
    note: "0: any token",
    value: 0,
    least: 0,
    end: 200,
    step: 1,
    most: 1e6,
    about: "Only the k likeliest tokens may be drawn. With 1, always the likeliest.",
  },
  {
    name: "top_p",
    label: "Top-p",
    word: "top-p",
    note: "1: any token",
    value: 0.95,
    least: 0.05,
    end: 1,
    step: 0.01,
    most: 1,
    about:
      "Only the likeliest tokens may be drawn, as many as together have this probability: few where the model is " +
      "sure, many where it is not.",
  },
  {
    name: "max_tokens",
    label: "Length",
    word: "token",
    note: "tokens",
    value: 200,
    least: 1,
    end: 1000,
    step: 10,
    most: 4096,
    about: "How many tokens are written at most. A token is a piece of text: a frequent word is one, a rare one several.",
  },
  {
    name: "seed",
    label: "Seed",
    word: "seed",
    note: "",
    value: 1,
    least: 0,
    end: 999,
    step: 1,
    most: 2 ** 31 - 1,
    about:
      "The draw's number: the same prompt, settings and seed give the same text. Each press of Write draws a new one, " +
      "unless it is pinned.",
  },
];

export class Knobs {
  settings = {};
  #pin;
  #used = null; // the seed that a text was written with already

  constructor(holder, changed, draw) {
    this.changed = () => {};
    this.#pin = pin(() => this.#setPinned(!this.pinned));
    holder.append(...KNOBS.map((knob) => this.#build(knob, draw)));
    this.restore(new Map());
    this.changed = changed;
  }

  set(name, given) {
    const { value, least, step, most } = KNOBS.find((each) => each.name === name);
    const figure = given === "" || Number.isNaN(Number(given)) ? value : Math.min(Math.max(Number(given), least), most);
    this.settings[name] = Number.isInteger(step) ? Math.round(figure) : figure;
    $(name).value = $(`${name}-number`).value = this.settings[name];
    showFilled($(name));
    this.changed();
  }

  restore(words) {
    for (const { name, value } of KNOBS) this.set(name, words.get(name) ?? value);
    this.#setPinned(words.get("pinned") === "true");
    this.keepSeedOnce();
  }

  get pinned() {
    return this.#pin.ariaPressed === "true";
  }

  drawSeed() {
    this.set("seed", Math.floor(Math.random() * 1000));
  }

  // For another text: a seed that was not used yet, unless the reader wants this one.
  takeSeed() {
    if (!this.pinned && this.#used === this.settings.seed) this.drawSeed();
    this.#used = this.settings.seed;
  }

  // For another model, to be compared.
  keepSeedOnce() {
    this.#used = null;
  }

  #setPinned(pinned) {
    this.#pin.ariaPressed = pinned;
    this.changed();
  }

  #build({ name, label, note, least, end, step, about, word }, draw) {
    const min = step > least ? 0 : least; // so that a slider stands on round figures
    const range = Object.assign(element("input"), { type: "range", id: name, min, max: end, step });
    const figure = Object.assign(element("input"), { type: "number", id: `${name}-number`, min: least, step: "any" });
    const title = Object.assign(element("label", "", label, " ", element("small", "", note)), { htmlFor: name });
    figure.inputMode = "decimal";
    figure.ariaLabel = `${label}, as a number`;
    range.addEventListener("input", () => this.set(name, range.value));
    figure.addEventListener("change", () => this.set(name, figure.value));
    const [help, told] = about ? explained(label, about, word) : ["", ""];
    const more = name === "seed" ? [die(draw), this.#pin] : [];
    return element("div", "knob", title, help, ...more, figure, range, told);
  }
}

function pin(turn) {
  const button = Object.assign(element("button", "", "Pin"), { type: "button", ariaPressed: "false" });
  button.title = "Keep this seed for every text";
  button.addEventListener("click", turn);
  return button;
}

function die(draw) {
  const button = Object.assign(element("button", "", "⚄ New"), { type: "button", ariaLabel: "New seed" });
  button.title = "Draw a new seed, and write again";
  button.addEventListener("click", draw);
  return button;
}
