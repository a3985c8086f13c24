// Curves, drawn as SVG, in which one can point, zoom and walk.
// In: lines of [place, value], and a View that charts side by side share: which part is shown, and where one points.
// Out: a drawing, the values under the pointer in words, and both by keys as well: arrows walk, + and - zoom, Escape
// shows the whole. Of more points than pixels the highest and the lowest of each pixel are drawn.

import { element, short } from "./parts.js";

const EDGE = { left: 48, right: 10, top: 10, bottom: 24 };

export function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The place in a line of the first entry not before this place; lines rise.
function placeOf(line, x) {
  let [low, high] = [0, line.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (line[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The entry of a line that lies nearest to a place.
export function nearest(line, x) {
  const after = Math.min(placeOf(line, x), line.length - 1);
  const before = Math.max(after - 1, 0);
  return Math.abs(line[before][0] - x) < Math.abs(line[after][0] - x) ? line[before] : line[after];
}

export function ticks(least, most, wanted = 4) {
  const rough = (most - least) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const gap = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const first = Math.ceil(least / gap - 1e-9);
  const count = Math.max(Math.floor(most / gap + 1e-9) - first + 1, 0);
  return Array.from({ length: count }, (_, i) => Number(((first + i) * gap).toPrecision(12)));
}

function logTicks(least, most) {
  const powers = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) powers.push(10 ** power);
  const inside = (choice) => choice.filter((each) => each >= least && each <= most).sort((a, b) => a - b);
  const fine = inside([1, 2, 5].flatMap((each) => powers.map((power) => each * power)));
  if (fine.length < 3) return ticks(least, most); // over less than a decade there are no powers to go by
  if (fine.length <= 6) return fine;
  const coarse = inside(powers);
  return coarse.filter((_, i) => i % Math.ceil(coarse.length / 6) === 0);
}

export const figure = (value) =>
  value === 0 ? "0" : Math.abs(value) >= 1e4 ? short(value) : Math.abs(value) < 1e-3 ? value.toExponential(1) :
    String(Number(value.toPrecision(4)));

// Which part of the whole is shown, and which place is pointed at.
export class View {
  constructor(from, to) {
    Object.assign(this, { whole: [from, to], shown: [from, to], at: null, charts: [] });
  }

  get zoomed() {
    return this.shown[0] > this.whole[0] || this.shown[1] < this.whole[1];
  }

  show(from, to) {
    const [first, last] = this.whole;
    if (to - from < (last - first) / 1e4) return;
    this.shown = [Math.max(from, first), Math.min(to, last)];
    for (const chart of this.charts) chart.draw();
  }

  reset() {
    this.show(...this.whole);
  }

  zoom(factor) {
    const [from, to] = this.shown;
    const middle = this.at === null ? (from + to) / 2 : this.at;
    this.show(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  point(x) {
    this.at = x;
    for (const chart of this.charts) chart.pointed();
  }

  // By so many hundredths of what is shown, which goes along where the place would leave it.
  walk(hundredths) {
    const [from, to] = this.shown;
    const by = (hundredths * (to - from)) / 100;
    const at = Math.min(Math.max((this.at ?? from) + by, this.whole[0]), this.whole[1]);
    if (at < from) this.show(at, at + to - from);
    if (at > to) this.show(at - (to - from), at);
    this.point(at);
  }
}

export class Chart {
  // lines: [{name, look, points, dots, quiet, noisy}]; look is a class of the style. A quiet one is not told of in
  // words; of a noisy one, what stands out may be cut off.
  constructor(holder, view, { name, lines, log = false, of = "step", format = figure, marks = [] }) {
    Object.assign(this, { holder, view, name, lines, log, of, format, marks });
    this.box = element("div", "chart");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "group");
    this.box.setAttribute("aria-label", `${name}. Arrow keys walk, plus and minus zoom, Escape shows the whole.`);
    this.told = element("p", "told-values");
    this.told.setAttribute("aria-live", "polite");
    holder.append(this.box, this.told);
    view.charts.push(this);
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.box.addEventListener("pointerdown", (event) => this.#grab(event));
    this.box.addEventListener("pointermove", (event) => this.#move(event));
    this.box.addEventListener("pointerup", () => this.#let());
    this.box.addEventListener("pointercancel", () => this.#let(false));
    this.box.addEventListener("pointerleave", () => this.dragged ?? view.point(null));
    this.box.addEventListener("dblclick", () => view.reset());
    this.box.addEventListener("keydown", (event) => this.#key(event));
  }

  show(lines, { log = this.log, format = this.format } = {}) {
    Object.assign(this, { lines, log, format });
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!width) return;
    const [from, to] = this.view.shown;
    const within = this.lines.map(({ points }) => {
      const [first, last] = [placeOf(points, from), placeOf(points, to)];
      return points.slice(Math.max(first - 1, 0), last + 2);
    });
    this.x = (place) => EDGE.left + ((place - from) / (to - from || 1)) * (width - EDGE.left - EDGE.right);
    this.placeAt = (x) => from + ((x - EDGE.left) / (width - EDGE.left - EDGE.right)) * (to - from);
    const [least, most] = this.#heights(within);
    const scale = this.log ? Math.log10 : (value) => value;
    const [low, high] = [scale(least), scale(most)];
    const inside = (value) => Math.min(Math.max(value, least), most);
    this.y = (value) => EDGE.top + ((high - scale(inside(value))) / (high - low || 1)) * (height - EDGE.top - EDGE.bottom);

    const drawing = svg("svg", { role: "img", "aria-label": this.summary(), viewBox: `0 0 ${width} ${height}` });
    for (const value of this.log ? logTicks(least, most) : ticks(least, most)) {
      const y = this.y(value);
      drawing.append(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }));
      drawing.append(svg("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, this.format(value)));
    }
    for (const place of ticks(from, to, Math.max(Math.floor(width / 80), 3))) {
      const anchor = this.x(place) > width - 30 ? "end" : "middle";
      drawing.append(svg("text", { x: this.x(place), y: height - 7, "text-anchor": anchor }, short(place)));
    }
    for (const { at, words } of this.marks.filter((mark) => mark.at >= from && mark.at <= to)) {
      drawing.append(svg("line", { class: "mark", x1: this.x(at), x2: this.x(at), y1: EDGE.top, y2: height - EDGE.bottom }));
      const right = this.x(at) > width * 0.7;
      const place = { x: this.x(at) + (right ? -4 : 4), y: EDGE.top + 10, "text-anchor": right ? "end" : "start" };
      drawing.append(svg("text", place, words));
    }
    const id = `clip-${this.view.charts.indexOf(this)}`;
    const clip = svg("clipPath", { id });
    clip.append(svg("rect", { x: EDGE.left, y: 0, width: Math.max(width - EDGE.left - EDGE.right, 0), height }));
    const curves = svg("g", { "clip-path": `url(#${id})` });
    this.lines.forEach(({ look, dots }, i) => {
      const path = this.#path(within[i]);
      if (path) curves.append(svg("path", { class: `line ${look}`, d: path }));
      if (dots && within[i].length <= 60)
        for (const [place, value] of within[i])
          curves.append(svg("circle", { class: `dot ${look}`, cx: this.x(place), cy: this.y(value), r: 2.5 }));
    });
    this.range = svg("rect", { class: "range", y: EDGE.top, height: height - EDGE.top - EDGE.bottom, width: 0 });
    this.cross = svg("line", { class: "at", y1: EDGE.top, y2: height - EDGE.bottom, visibility: "hidden" });
    drawing.append(clip, curves, this.range, this.cross);
    this.box.replaceChildren(drawing);
    this.pointed();
  }

  summary() {
    const told = this.lines.filter(({ points, quiet }) => points.length && !quiet).map(({ name, points }) => {
      const [first, last] = [points[0], points.at(-1)];
      const at = ([place, value]) => `${this.format(value)} at ${this.of} ${short(place)}`;
      return `${name} from ${at(first)} to ${at(last)}`;
    });
    return `${this.name}: ${told.join("; ")}`;
  }

  pointed() {
    const at = this.view.at;
    if (!this.cross) return;
    const spoken = this.lines.filter(({ points, quiet }) => points.length && !quiet);
    if (at === null || !spoken.length) {
      this.cross.setAttribute("visibility", "hidden");
      this.told.textContent = spoken.map(({ name, points }) => `${name} ${this.format(points.at(-1)[1])}`).join(" · ");
      return;
    }
    const densest = spoken.reduce((best, line) => (line.points.length > best.points.length ? line : best));
    const place = nearest(densest.points, at)[0];
    for (const end of ["x1", "x2"]) this.cross.setAttribute(end, this.x(place));
    this.cross.setAttribute("visibility", "visible");
    const values = spoken.map(({ name, points }) => `${name} ${this.format(nearest(points, place)[1])}`);
    this.told.textContent = `${this.of} ${Math.round(place).toLocaleString("en")}: ${values.join(" · ")}`;
  }

  // A single wild step must not press the rest flat.
  #heights(within) {
    const bold = this.lines.map((line, i) => [line, within[i]]).filter(([line]) => !line.noisy);
    const values = bold.flatMap(([, points]) => points.map(([, value]) => value));
    const kept = this.log ? values.filter((value) => value > 0) : values;
    if (!kept.length) return this.log ? [0.1, 1] : [0, 1];
    kept.sort((a, b) => a - b);
    const part = (share) => kept[Math.min(Math.floor(share * kept.length), kept.length - 1)];
    const [low, high] = kept.length > 400 ? [part(0.001), part(0.997)] : [kept[0], kept.at(-1)];
    if (this.log) return [low / 1.1, high * 1.1];
    const air = (high - low || Math.abs(high) || 1) * 0.06;
    return [low >= 0 ? Math.max(low - air, 0) : low - air, high + air];
  }

  #path(points) {
    const drawn = [];
    let pixel = null;
    let [lowest, highest] = [null, null];
    const leave = () => {
      if (!lowest) return;
      drawn.push(...(lowest === highest ? [lowest] : lowest[0] < highest[0] ? [lowest, highest] : [highest, lowest]));
    };
    for (const point of points) {
      if (this.log && point[1] <= 0) continue;
      const here = Math.round(this.x(point[0]));
      if (here !== pixel) {
        leave();
        [pixel, lowest, highest] = [here, point, point];
      } else {
        if (point[1] < lowest[1]) lowest = point;
        if (point[1] > highest[1]) highest = point;
      }
    }
    leave();
    return drawn.length ? `M${drawn.map(([place, value]) => `${this.x(place).toFixed(1)} ${this.y(value).toFixed(1)}`).join("L")}` : "";
  }

  #placeOf(event) {
    const [from, to] = this.view.shown;
    return Math.min(Math.max(this.placeAt(event.clientX - this.box.getBoundingClientRect().left), from), to);
  }

  #grab(event) {
    if (!this.placeAt || event.button) return;
    this.dragged = this.#placeOf(event);
    if (event.pointerType !== "touch") this.box.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.placeAt) return;
    const place = this.#placeOf(event);
    this.view.point(place);
    if (this.dragged === undefined || this.dragged === null) return;
    const [from, to] = [this.dragged, place].sort((a, b) => a - b);
    this.range.setAttribute("x", this.x(from));
    this.range.setAttribute("width", Math.max(this.x(to) - this.x(from), 0));
  }

  #let(zoom = true) {
    const [from, to] = [this.dragged ?? null, this.view.at];
    this.dragged = null;
    this.range?.setAttribute("width", 0);
    if (zoom && from !== null && to !== null && Math.abs(this.x(from) - this.x(to)) > 8)
      this.view.show(Math.min(from, to), Math.max(from, to));
  }

  #key(event) {
    const keys = {
      ArrowLeft: () => this.view.walk(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.view.walk(event.shiftKey ? 10 : 1),
      Home: () => this.view.walk(-1e6),
      End: () => this.view.walk(1e6),
      "+": () => this.view.zoom(0.5),
      "=": () => this.view.zoom(0.5),
      "-": () => this.view.zoom(2),
      Escape: () => this.view.reset(),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  }
}
