// Talks to the model in this page, as api.js does to a server: the rest of the page knows no difference.
// In: paths and requests.  Out: what the page was written with, or an answer piece by piece.

import { $, count } from "./parts.js";

export class Trouble extends Error {}

const told = JSON.parse($("model-facts").textContent);
const REFUSED = "This browser does not let a page compute beside itself. Open it in another one.";
let worker = null;
let listeners = new Map(); // by the number of what was asked
let asked = 0;

function begin() {
  const source = new Blob([$("model-script").textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source));
  return new Promise((resolve, reject) => {
    const fail = (words) => reject(new Trouble(words));
    worker.onerror = (event) => fail(event.message || REFUSED);
    worker.onmessage = ({ data }) => {
      if (data.ready) resolve();
      else if (listeners.has(data.of)) listeners.get(data.of)(data);
      else if (data.failed) fail(data.failed);
    };
    worker.postMessage({ begin: told.begin });
    // Piece by piece, so that they do not stand in memory twice.
    for (const piece of document.querySelectorAll("script.weights")) {
      worker.postMessage({ weights: piece.textContent.trim() });
      piece.remove();
    }
  });
}

let ready = null;

export async function get(path) {
  if (path === "/api/models") {
    if (!ready) $("state").textContent = `Reading ${count(told.begin.bytes / 1e6)} MB of weights …`;
    ready ??= begin();
    try {
      await ready;
    } catch (error) {
      throw error instanceof Trouble ? error : new Trouble(REFUSED);
    }
    return [told.model];
  }
  return path.endsWith("/curve") ? told.curve : told.samples;
}

// What a token looked at is not computed here, and not offered.
export const look = async () => {
  throw new Trouble("A model in a page does not tell what it looked at; hornbook serve does.");
};

// Yields {text, tokens: [{text, p, considered: [[text, p], ...]}]}, and returns why the model stopped.
export async function* complete(request, signal) {
  const mine = ++asked;
  const queue = [];
  let wake = () => {};
  const put = (each) => {
    queue.push(each);
    wake();
  };
  listeners.set(mine, put);
  signal.addEventListener("abort", () => put({ stopped: true }));
  worker.postMessage({ ask: mine, request });
  try {
    for (;;) {
      if (!queue.length) await new Promise((resolve) => (wake = resolve));
      const { piece, ended, failed, stopped } = queue.shift();
      if (stopped) throw new DOMException("stopped", "AbortError");
      if (failed) throw new Trouble(failed);
      if (ended) return ended;
      yield piece;
    }
  } finally {
    listeners.delete(mine);
    if (signal.aborted) worker.postMessage({ stop: mine });
  }
}
