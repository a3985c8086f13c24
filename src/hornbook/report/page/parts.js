// Elements, and figures as people read them.

export const $ = (id) => document.getElementById(id);

export function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// A link to a word of the glossary; in another tab, since this one holds a text that is kept nowhere else.
export const toGlossary = (word, text) =>
  Object.assign(element("a", "", text), { href: `/glossary#word-${word}`, target: "_blank" });

// A button that tells what a thing is, and the words that it shows; both are to be placed.
export function explained(what, words, word) {
  const told = element("p", "told", words, " ", toGlossary(word, "In the glossary"));
  const button = Object.assign(element("button", "help", "?"), { type: "button", ariaLabel: `What is ${what}?` });
  told.id = `about-${what.toLowerCase().replace(/\W+/g, "-")}`;
  told.hidden = true;
  button.setAttribute("aria-expanded", false);
  button.setAttribute("aria-controls", told.id);
  button.addEventListener("click", () => {
    told.hidden = !told.hidden;
    button.setAttribute("aria-expanded", !told.hidden);
  });
  return [button, told];
}

export const count = (n) => Math.round(n).toLocaleString("en");

export function short(n) {
  const [size, unit] = [
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ].find(([each]) => n >= each) ?? [1, ""];
  return `${Number((n / size).toPrecision(3))}${unit}`;
}

export const percent = (p) =>
  p >= 0.0995 ? `${Math.round(100 * p)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%";

// A page opened over plain http from another machine has no navigator.clipboard.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", "unseen");
  const focused = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!done) throw new Error("the browser does not let this page copy");
}

// Lets the style draw a slider's track in another colour up to its thumb.
export function showFilled(range) {
  range.style.setProperty("--at", `${(100 * (range.value - range.min)) / (range.max - range.min || 1)}%`);
}
