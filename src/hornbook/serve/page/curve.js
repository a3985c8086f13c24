// The loss curve, drawn as SVG, with the steps on a logarithmic scale: a model learns most while it is young.
// In: [[step, loss], ...] of training and validation, the run's points and which of them is chosen.
// Out: a drawing that one can point at, and a sentence and a table that say the same.

import { nearest, svg, ticks } from "./chart.js";
import { count, element, short } from "./parts.js";

const EDGE = { left: 30, right: 8, top: 20, bottom: 34 };

export class Curve {
  constructor(holder, caption, table, choose) {
    Object.assign(this, { holder, caption, table, choose, data: null, points: [], chosen: null });
    new ResizeObserver(() => this.data && this.draw()).observe(holder);
    holder.addEventListener("pointermove", (event) => this.#point(event));
    holder.addEventListener("pointerleave", () => this.#unpoint());
    holder.addEventListener("click", (event) => this.points.length && this.choose(this.#nearestPoint(event)));
  }

  show(data, points) {
    Object.assign(this, { data, points });
    this.#tabulate();
  }

  forget() {
    Object.assign(this, { data: null, points: [], chosen: null, cross: null });
    this.holder.replaceChildren();
  }

  trainingLossAt(step) {
    return this.data?.train.find(([each]) => each === step)?.[1];
  }

  choosePoint(point) {
    this.chosen = point;
    if (this.data) this.draw();
  }

  draw() {
    const { train, val } = this.data;
    const { clientWidth: width, clientHeight: height } = this.holder;
    const all = [...train, ...val];
    this.holder.replaceChildren();
    if (!all.length || !width) return;
    const steps = all.map(([step]) => step).concat(this.points.map(({ step }) => step));
    const losses = all.map(([, loss]) => loss).sort((a, b) => a - b);
    // A spike of training must not press the rest of the curve flat: it is cut off where a run begins.
    const begins = [train, val].flatMap((line) => line.slice(0, 1).map(([, loss]) => loss));
    const [least, most] = [
      losses[0],
      Math.max(losses[Math.ceil(0.995 * losses.length) - 1], ...begins, losses[0] + 0.1),
    ];
    const decades = (step) => Math.log10(Math.max(step, 1));
    const [from, to] = [
      decades(Math.min(...steps)),
      Math.max(decades(Math.max(...steps)), decades(Math.min(...steps)) + 0.3),
    ];
    this.x = (step) => EDGE.left + ((decades(step) - from) / (to - from)) * (width - EDGE.left - EDGE.right);
    this.y = (loss) => EDGE.top + ((most - Math.min(loss, most)) / (most - least)) * (height - EDGE.top - EDGE.bottom);
    this.stepAt = (x) => 10 ** (from + ((x - EDGE.left) / (width - EDGE.left - EDGE.right)) * (to - from));

    const drawing = svg("svg", { role: "img", "aria-label": this.summary(), viewBox: `0 0 ${width} ${height}` });
    for (const loss of ticks(least, most)) {
      drawing.append(
        svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: this.y(loss), y2: this.y(loss) }),
      );
      drawing.append(svg("text", { x: EDGE.left - 6, y: this.y(loss) + 4, "text-anchor": "end" }, loss));
    }
    for (let power = Math.ceil(from); power <= to; power++) {
      drawing.append(
        svg(
          "text",
          { x: this.x(10 ** power), y: height - EDGE.bottom + 14, "text-anchor": "middle" },
          short(10 ** power),
        ),
      );
    }
    drawing.append(
      svg("text", { x: width - EDGE.right, y: height - 4, "text-anchor": "end" }, "steps, on a log scale"),
    );
    drawing.append(svg("text", { x: 0, y: 10 }, "loss"));
    for (const [name, line] of Object.entries({ train, val })) {
      const path = line.map(([step, loss]) => `${this.x(step).toFixed(1)} ${this.y(loss).toFixed(1)}`).join("L");
      if (path) drawing.append(svg("path", { class: name, d: `M${path}` }));
    }
    for (const point of this.points) drawing.append(this.#dot(point, "point", 2.5));
    if (this.chosen) drawing.append(this.#dot(this.chosen, "chosen", 5.5));
    this.cross = svg("line", { class: "at", y1: EDGE.top, y2: height - EDGE.bottom, visibility: "hidden" });
    drawing.append(this.cross);
    this.holder.append(drawing);
    this.#unpoint();
  }

  #dot({ step, val_loss: loss }, name, r) {
    const { train, val } = this.data; // a point without an evaluation of its own lies on the training curve
    const line = train.length ? train : val;
    return svg("circle", { class: name, cx: this.x(step), cy: this.y(loss ?? nearest(line, step)[1]), r });
  }

  summary() {
    const at = ([step, loss]) => `${loss.toFixed(2)} at step ${count(step)}`;
    const tell = (name, line) => line.length && `${name} loss from ${at(line[0])} to ${at(line.at(-1))}`;
    return [tell("validation", this.data.val), tell("training", this.data.train)].filter(Boolean).join("; ");
  }

  #nearestPoint(event) {
    const x = event.clientX - this.holder.getBoundingClientRect().left;
    const away = this.points.map((point) => Math.abs(this.x(point.step) - x));
    return away.indexOf(Math.min(...away));
  }

  #point(event) {
    if (!this.cross) return;
    const step = this.stepAt(event.clientX - this.holder.getBoundingClientRect().left);
    const { train, val } = this.data;
    const at = nearest(train.length ? train : val, step)[0];
    this.cross.setAttribute("x1", this.x(at));
    this.cross.setAttribute("x2", this.x(at));
    this.cross.setAttribute("visibility", "visible");
    const told = [
      val.length && `validation ${nearest(val, at)[1].toFixed(2)}`,
      train.length && `training ${nearest(train, at)[1].toFixed(2)}`,
    ];
    this.caption.textContent = `Step ${count(at)}: ${told.filter(Boolean).join(", ")}`;
  }

  #unpoint() {
    if (!this.data) return;
    this.cross?.setAttribute("visibility", "hidden");
    const { step, steps_total: total, val } = this.data;
    const ran = `Step ${count(step)}${total ? ` of ${count(total)}` : ""}`;
    this.caption.textContent = val.length ? `${ran}: validation loss ${val.at(-1)[1].toFixed(3)}` : ran;
  }

  #tabulate() {
    const { train, val } = this.data;
    const line = val.length ? val : train;
    const gap = Math.max(1, Math.ceil(line.length / 12));
    const rows = line.filter((_, i) => (line.length - 1 - i) % gap === 0);
    const body = rows.map(([step]) => {
      const cells = [val, train].map((each) =>
        element("td", "", each.length ? nearest(each, step)[1].toFixed(3) : "–"),
      );
      const head = element("th", "", count(step));
      head.scope = "row";
      return element("tr", "", head, ...cells);
    });
    const heads = ["Step", "Validation", "Training"].map((name) => element("th", "", name));
    for (const head of heads) head.scope = "col";
    this.table.replaceChildren(
      element("table", "", element("thead", "", element("tr", "", ...heads)), element("tbody", "", ...body)),
    );
  }
}
