// The script of report.html: its charts, and the slider over what the model said.
// In: the data that stand in the page.  Out: nothing is asked of anybody.

import { Chart, View, figure } from "./chart.js";
import { $, element, showFilled } from "./parts.js";

const data = JSON.parse($("data").textContent);

// A loss in nats a token as what else it is called.
const MEASURES = {
  loss: { of: (value) => value, log: false },
  perplexity: { of: (value) => Math.exp(Math.min(value, 700)), log: true },
  "bits per byte": { of: (value, line) => value * line.bits, log: false },
};

function measured(lines, measure) {
  const { of } = MEASURES[measure];
  return lines.map((line) => ({ ...line, points: line.points.map(([place, value]) => [place, of(value, line)]) }));
}

function choices(names, chosen, choose) {
  const group = element("fieldset", "choices");
  group.append(element("legend", "unseen", "What is drawn"));
  for (const name of names) {
    const input = Object.assign(element("input"), { type: "radio", name: "measure", value: name });
    input.checked = name === chosen;
    input.addEventListener("change", () => choose(name));
    group.append(element("label", "", input, element("span", "", name)));
  }
  return group;
}

function legend(lines) {
  const list = element("ul", "keys");
  for (const { name, look, quiet } of lines) if (!quiet) list.append(element("li", `key ${look}`, name));
  return list;
}

function drawCharts(holder) {
  const view = new View(...data.whole);
  const whole = Object.assign(element("button", "whole", "Show all of it"), { type: "button", hidden: true });
  whole.addEventListener("click", () => view.reset());
  view.charts.push({ draw: () => (whole.hidden = !view.zoomed), pointed: () => {} });
  for (const { name, lines, log, measures, marks } of data.charts) {
    const place = element("section", measures ? "wide" : "");
    const head = element("div", "chart-head", element("h3", "", name));
    place.append(head);
    holder.append(place);
    const options = { name, lines, log, of: data.of, marks: marks ?? [] };
    if (measures) {
      const first = measures[0];
      const chart = new Chart(place, view, { ...options, lines: measured(lines, first), log: MEASURES[first].log });
      head.append(
        choices(measures, first, (measure) => chart.show(measured(lines, measure), { log: MEASURES[measure].log })),
        whole,
      );
    } else {
      new Chart(place, view, { ...options, format: figure });
    }
    if (lines.filter((line) => !line.quiet).length > 1) place.append(legend(lines));
  }
}

function tellSamples(holder) {
  const { steps, prompts, texts } = data.samples;
  const slider = $("sampled");
  const said = prompts.map((prompt) => {
    const told = element("blockquote");
    holder.append(told);
    return (text) => told.replaceChildren(element("i", "", prompt), text ?? "");
  });
  const show = () => {
    const place = Number(slider.value);
    const step = steps[place].toLocaleString("en");
    $("sampled-at").textContent = `Step ${step}`;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    said.forEach((tell, i) => tell(texts[place][i]));
    showFilled(slider);
  };
  slider.max = steps.length - 1;
  slider.value = slider.max;
  slider.addEventListener("input", show);
  show();
}

if (data.charts.length) drawCharts($("charts"));
if (data.samples?.steps.length) tellSamples($("samples-said"));
