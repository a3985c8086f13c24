// The continuation on the page, and what the model considered at each of its tokens.
// In: pieces as `complete` yields them.  Out: a span for each. Tab reaches one of them, the arrow keys the others;
// pointing at one, tapping it or walking to it opens the popover, where it is not told elsewhere; Escape closes it.

import { element, percent } from "./parts.js";

const MARKS = [
  [0.001, "t4"],
  [0.01, "t3"],
  [0.05, "t2"],
  [0.2, "t1"],
]; // below this probability, this class
const NAMES = { "\n": "line break", "\t": "tab", " ": "space", "": "end of text" };

const shown = (text) =>
  text
    .replace(/^bytes:/, "") // how a part of a character is spelt
    .replaceAll(" ", "␣")
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥") || "end of text";
const boxOf = (span) => span.getClientRects()[0] ?? span.getBoundingClientRect(); // its first line's, where it has two
const spoken = (text) => NAMES[text] ?? (text.trim() ? text.trim() : "white space");

export class Answer {
  #stop = 0; // the token that Tab reaches
  #leaving = 0;
  #at = null; // where the open token was

  // `opened` is told the place of each token that is meant, and says whether it is told elsewhere.
  constructor(holder, popover, opened) {
    Object.assign(this, { element: holder, popover, opened });
    this.pieces = [];
    const at = (event) => event.target.closest?.("#answer > span");
    holder.addEventListener(
      "pointerover",
      (event) => event.pointerType === "mouse" && at(event) && this.#open(at(event)),
    );
    holder.addEventListener("pointerout", (event) => event.pointerType === "mouse" && this.#closeSoon());
    popover.addEventListener("pointerenter", () => clearTimeout(this.#leaving));
    popover.addEventListener("pointerleave", () => this.#closeSoon());
    holder.addEventListener("click", (event) => {
      at(event)?.focus(); // a tap on the token that has the focus already opens it again
      this.#open(at(event));
    });
    holder.addEventListener("focusin", (event) => this.#open(at(event)));
    holder.addEventListener("focusout", () => this.close());
    holder.addEventListener("keydown", (event) => this.#walk(event));
    addEventListener("pointerdown", (event) => !at(event) && !popover.contains(event.target) && this.close());
    addEventListener("scroll", () => this.#moved() && this.close(), true);
    addEventListener("resize", () => this.close());
  }

  get text() {
    return this.pieces.map((piece) => piece.text).join("");
  }

  show(pieces) {
    this.close();
    this.pieces = [];
    this.#stop = 0;
    this.element.replaceChildren();
    for (const piece of pieces) this.add(piece);
  }

  add(piece) {
    const span = document.createElement("span");
    span.textContent = piece.text;
    const p = piece.tokens.reduce((product, token) => product * token.p, 1);
    span.className = MARKS.find(([below]) => p < below)?.[1] ?? "";
    span.classList.toggle("break", /^\n/.test(piece.text));
    span.tabIndex = -1;
    this.element.append(span);
    this.pieces.push(piece);
    if (this.pieces.length === 1) this.#moveStop(0);
  }

  // Only the stop is a button to a screen reader, so that the text reads as text and not as hundreds of buttons.
  #moveStop(to) {
    const [old, span] = [this.element.children[this.#stop], this.element.children[to]];
    if (old) {
      old.tabIndex = -1;
      for (const name of ["role", "aria-label", "aria-describedby"]) old.removeAttribute(name);
    }
    this.#stop = to;
    span.tabIndex = 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", spoken(span.textContent));
  }

  #walk(event) {
    const spans = [...this.element.children];
    const here = spans.indexOf(document.activeElement);
    const last = spans.length - 1;
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) this.#open(spans[here]);
    const to =
      { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key] ??
      this.#lineAway(spans, here, event.key);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    spans[Math.min(Math.max(to, 0), last)].focus();
  }

  #lineAway(spans, here, key) {
    const way = { ArrowUp: -1, ArrowDown: 1 }[key];
    if (!way) return undefined;
    const from = spans[here].getBoundingClientRect();
    let best = here;
    let line = null;
    for (let i = here + way; spans[i]; i += way) {
      const box = spans[i].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < from.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > from.height / 2) break;
      const nearer =
        best === here ||
        Math.abs(box.left - from.left) < Math.abs(spans[best].getBoundingClientRect().left - from.left);
      if (nearer) best = i;
    }
    return best;
  }

  // --- the popover ---

  get isOpen() {
    return !this.popover.hidden;
  }

  close() {
    clearTimeout(this.#leaving);
    this.popover.hidden = true;
    this.element.querySelector(".open")?.classList.remove("open");
  }

  // Time enough to move from the token into the popover.
  #closeSoon() {
    clearTimeout(this.#leaving);
    this.#leaving = setTimeout(() => {
      const focused = document.activeElement?.closest("#answer > span");
      if (focused?.matches(":focus-visible")) this.#open(focused);
      else this.close();
    }, 150);
  }

  #open(span) {
    const i = [...this.element.children].indexOf(span);
    if (i < 0) return;
    this.close();
    if (span === document.activeElement) {
      this.#moveStop(i);
      span.setAttribute("aria-describedby", this.popover.id);
    }
    span.classList.add("open");
    this.popover.replaceChildren(...tellPiece(this.pieces[i]));
    this.popover.hidden = this.opened(i);
    this.#at = boxOf(span);
    this.#place(this.#at);
  }

  #moved() {
    const span = this.element.querySelector(".open");
    return !span || Math.abs(boxOf(span).top - this.#at.top) > 1;
  }

  #place(token) {
    const { offsetWidth: width, offsetHeight: height } = this.popover;
    const below = token.bottom + 8 + height < innerHeight;
    const left = Math.min(Math.max(token.left - 16, 8), document.documentElement.clientWidth - width - 8);
    this.popover.style.left = `${left}px`;
    this.popover.style.top = `${below ? token.bottom + 8 : Math.max(token.top - height - 8, 8)}px`;
  }
}

// What was considered for each of its tokens.
export const tellPiece = (piece) => piece.tokens.flatMap(tellToken);

function tellToken({ text, p, considered }) {
  const taken = considered.find(([other]) => other === text);
  const head = element("p", "", element("b", "", shown(text)), element("span", "", `${percent(p)} likely`));
  const rows = taken || !considered.length ? considered : [...considered, [text, p]];
  return [head, element("ol", "", ...rows.map((row) => bar(row, row[0] === text)))];
}

export function bar([text, p], taken) {
  const fill = element("i");
  fill.style.width = `${100 * p}%`;
  return element(
    "li",
    taken ? "bar taken" : "bar",
    element("span", "", shown(text)),
    fill,
    element("em", "", percent(p)),
  );
}
