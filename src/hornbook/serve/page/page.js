// The page: a prompt, the model's continuation, and the model's youth on a slider.
// The address holds the settings and the model, never the text.

import { Answer } from "./answer.js";
import { complete, get, Trouble } from "./api.js";
import { Beside } from "./beside.js";
import { Curve } from "./curve.js";
import { Knobs } from "./knobs.js";
import { Looked } from "./looked.js";
import { $, copy, count, element, explained, short, showFilled, toGlossary } from "./parts.js";

const CONSIDERED = 8; // how many tokens the popover tells of
const KEPT = 100; // answers that the page remembers
const REFRESH_MS = 3000;
const RESTING_TURNS = 10;
const REST_MS = 700; // between two snapshots that play

const main = document.querySelector("main");
const prompt = $("prompt");
const looked = new Looked();
const answer = new Answer($("answer"), $("popover"), (i) => looked.at(shown, answer.pieces, i));
const curve = new Curve($("curve"), $("curve-text"), $("curve-table"), (i) => goTo(i));
const answers = new Map(); // request as JSON -> {pieces, ending}
const knobs = new Knobs($("knobs"), remember, draw);
const beside = new Beside(() => {
  knobs.keepSeedOnce();
  remember();
  update();
});

let models = [];
let model = null;
let shown = null; // the request that the answer there answers
let silence = ""; // why the model cannot be spoken to, as it was told last
let point = -1; // index into model.points
let following = false; // the newest point, whichever it is
let work = null; // the AbortController of the request that runs
let atEnd = true; // whether the reader looks at the end of the text, and is to stay there
let scrolledTo = 0;
let playing = null; // an object while snapshots play, another each time

// --- what to ask for ---

function modelId() {
  if (following) return `${model.name}@newest`;
  return model.points[point]?.id ?? model.id;
}

function request() {
  const { top_k, ...others } = knobs.settings;
  return { model: modelId(), prompt: prompt.value, ...others, ...(top_k && { top_k }), logprobs: CONSIDERED };
}

const canWrite = () => model && !model.silent;
const isBusy = () => Boolean(work || playing || beside.isBusy);

// --- writing ---

// Another text, as the reader asks for it.
function writeAnew() {
  if (!canWrite()) return;
  knobs.takeSeed();
  write();
}

// Resolves to true when the whole answer has come.
async function write() {
  if (!canWrite()) return false;
  drop();
  const asked = request();
  const mine = (work = new AbortController());
  const began = performance.now();
  beside.write(asked);
  showTrouble(null);
  display([], asked);
  atEnd = isAtEnd();
  tellState("");
  say("Writing.");
  try {
    const stream = complete(asked, mine.signal);
    for (;;) {
      const { value, done } = await stream.next();
      if (work !== mine) return false;
      if (done) {
        keep(asked, { pieces: answer.pieces, ending: value });
        const seconds = (performance.now() - began) / 1000;
        finish(value, asked.seed, `${count(answer.pieces.length / seconds)} per second`);
        return true;
      }
      append(value);
    }
  } catch (error) {
    if (work === mine) {
      playing = null;
      showTrouble(error, write);
    }
    return false; // or another request took over, or the reader stopped this one
  } finally {
    if (work === mine) work = null;
    update();
  }
}

const tokens = () => `${count(answer.pieces.length)} ${answer.pieces.length === 1 ? "token" : "tokens"}`;

function finish({ finish: reason, forgotten }, seed, speed) {
  const told = [
    tokens(),
    `seed ${seed}`,
    reason === "stop" && "the text ends here",
    speed,
    forgotten && `the prompt's first ${forgotten} not seen`,
  ];
  tellState(told.filter(Boolean).join(" · "));
  say(`Done, ${tokens()}: ${answer.text}`);
}

function append(piece) {
  answer.add(piece);
  if (answer.pieces.length === 1) update();
  tellState(tokens());
  requestAnimationFrame(() => {
    if (atEnd) main.scrollTop = main.scrollHeight;
  });
}

const isAtEnd = () => main.scrollHeight - main.scrollTop - main.clientHeight < 48;

// Measured when the reader scrolls, not at every token, which would lay the page out each time.
// Text that came since we scrolled has moved the end away; only the reader goes up.
function lookWhetherAtEnd() {
  const wentUp = main.scrollTop < scrolledTo;
  atEnd = isAtEnd() || (atEnd && !wentUp);
  scrolledTo = main.scrollTop;
}

function display(pieces, asked) {
  shown = asked;
  looked.forget();
  answer.show(pieces);
  $("answer").classList.remove("stale");
  update();
}

function keep(asked, made) {
  answers.set(JSON.stringify(asked), made);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
}

function drop() {
  beside.stop();
  work?.abort();
  work = null;
}

function stop() {
  if (work) {
    tellState(`Stopped after ${tokens()}`);
    say("Stopped.");
  }
  playing = null;
  drop();
  update();
}

function goOn() {
  prompt.value += answer.text;
  $("write").focus(); // the button that was pressed goes grey
  write();
}

// --- the model's youth ---

// Shows what the page has of this point; the answer that another point gave stays, faded, until a new one comes.
function choose(i) {
  drop();
  point = i;
  following = false;
  tellPoint();
  remember();
  return showKnown();
}

// What the page remembers of what is asked for now; the text that stands there stays otherwise, faded.
function showKnown() {
  const asked = request();
  const known = answers.get(JSON.stringify(asked));
  if (known) {
    display(known.pieces, asked);
    finish(known.ending, asked.seed);
  } else {
    $("answer").classList.toggle("stale", answer.pieces.length > 0);
    update();
  }
  return known !== undefined;
}

const answerAt = async (i) => choose(i) || write();

function goTo(i) {
  playing = null;
  return answerAt(i);
}

async function play() {
  if (playing) return stop();
  const mine = (playing = {});
  for (let i = 0; i < model.points.length && playing === mine; i++) {
    if (!(await answerAt(i))) break;
    if (i < model.points.length - 1) await new Promise((resolve) => setTimeout(resolve, REST_MS));
  }
  if (playing === mine) playing = null;
  update();
}

function tellPoint() {
  const { step, tokens: seen, val_loss: loss } = model.points[point] ?? {};
  $("growth").hidden = model.points.length < (model.training ? 1 : 2);
  $("newest").hidden = !model.training;
  $("newest").setAttribute("aria-pressed", following);
  if (step === undefined) return void curve.choosePoint(null);
  const [name, lost] = loss === null ? ["training loss", curve.trainingLossAt(step)] : ["validation loss", loss];
  const told = [seen !== null && `${short(seen)} tokens`, lost !== undefined && `${name} ${lost.toFixed(2)}`];
  const words = told.filter(Boolean);
  $("point").max = model.points.length - 1;
  $("point").value = point;
  showFilled($("point"));
  $("point").setAttribute("aria-valuetext", [`step ${count(step)}`, ...words].join(", "));
  $("point-text").replaceChildren(
    element("b", "", `Step ${count(step)}`),
    ` · ${words.join(" · ").replace("validation ", "").replace("training loss", "train")}`,
  );
  curve.choosePoint(model.points[point]);
}

// The best by validation loss, as the run's bare name means it.
function bestPoint() {
  const losses = model.points.map(({ kind, val_loss: loss }) =>
    kind === "checkpoint" ? (loss ?? Infinity) : Infinity,
  );
  const least = Math.min(...losses);
  return Number.isFinite(least) ? losses.lastIndexOf(least) : model.points.length - 1;
}

// --- models, curves, samples ---

const getModels = async () => (await get("/api/models")).map((each) => ({ points: [], ...each }));

async function load() {
  try {
    models = await getModels();
  } catch (error) {
    showTrouble(error, load);
    return;
  }
  showTrouble(null);
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $("model").hidden = models.length < 2;
  $("name").hidden = models.length > 1;
  restore();
}

function take(name, at) {
  stop();
  model = models.find((each) => each.name === name);
  beside.offer(models, name, beside.name);
  $("model").value = $("name").textContent = name;
  document.title = `${name} – Hornbook`;
  const { parameters, context, vocab_size: vocabulary } = model; // null while a run has kept nothing
  const facts = [
    [`${short(parameters)} `, toGlossary("parameters", "parameters")],
    [" · ", toGlossary("context", "context"), ` ${count(context)}`],
    [" · ", toGlossary("vocabulary", "vocabulary"), ` ${count(vocabulary)}`],
  ];
  $("facts").replaceChildren(...(parameters ? facts.flat() : []));
  following = at === "newest" || (!at && model.training);
  const asked = model.points.findIndex(({ step }) => String(step) === at);
  point = following ? model.points.length - 1 : asked < 0 ? bestPoint() : asked;
  $("learned").hidden = $("samples").hidden = true;
  tellState("");
  showKnown();
  knobs.keepSeedOnce();
  curve.forget();
  tellPoint();
  tellLive();
  if (model.kind === "run") watch();
}

async function watch() {
  const run = model.name;
  try {
    const [drawn, samples] = await Promise.all([
      get(`/api/runs/${encodeURIComponent(run)}/curve`),
      get(`/api/runs/${encodeURIComponent(run)}/samples?last=3`),
    ]);
    if (model.name !== run) return;
    $("learned").hidden = drawn.train.length + drawn.val.length === 0;
    curve.show(drawn, model.points);
    tellPoint();
    tellLive(drawn);
    $("samples").hidden = samples.length === 0;
    $("samples-list").replaceChildren(...samples.toReversed().map(tellSample));
  } catch (error) {
    if (model.name === run) showTrouble(error, watch);
  }
}

function tellSample({ step, prompt: begun, text }) {
  return element("blockquote", "", element("footer", "", `Step ${count(step)}`), element("i", "", begun), text);
}

function tellLive({ step, steps_total: total } = {}) {
  $("live").hidden = !model.training;
  $("live-text").textContent =
    step === undefined ? "training" : `training, step ${count(step)}${total ? ` of ${count(total)}` : ""}`;
}

// A run's new points, curve and samples.
async function refresh() {
  if (document.hidden || model?.kind !== "run") return;
  try {
    models = await getModels();
    const chosen = model.points[point];
    model = models.find(({ name }) => name === model.name) ?? model;
    const same = model.points.findIndex(({ id }) => id === chosen?.id);
    point = following || same < 0 ? model.points.length - 1 : same;
    if (retry === refresh || retry === watch) showTrouble(null);
    tellLive();
    if (model.kind === "run") await watch();
    update();
  } catch (error) {
    showTrouble(error, refresh);
  }
}

let turns = 0;

// Of a run that rests, now and then: it may have been taken up again.
async function follow() {
  if (model?.training || ++turns % RESTING_TURNS === 0) await refresh();
  setTimeout(follow, REFRESH_MS);
}

// --- settings ---

function draw() {
  knobs.drawSeed();
  if (answer.pieces.length || work) writeAnew();
}

let remembering = 0;

// Not at each step of a slider: Safari and Firefox throw where the address changes more than 100 times in seconds.
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(putIntoAddress, 150);
}

function putIntoAddress() {
  if (!model) return;
  const other = beside.name && { beside: beside.name };
  const pinned = knobs.pinned && { pinned: true };
  const at = new URLSearchParams({ model: modelId(), ...other, ...knobs.settings, ...pinned }).toString().replaceAll("%40", "@");
  history.replaceState(null, "", `#${at}`);
}

function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  knobs.restore(asked);
  // A name may hold an @ of its own.
  const id = asked.get("model") ?? models[0].name;
  const found = models.find(
    ({ name }) => id === name || (id.startsWith(`${name}@`) && !id.slice(name.length + 1).includes("@")),
  );
  take((found ?? models[0]).name, found && id.slice(found.name.length + 1));
  beside.offer(models, model.name, asked.get("beside"));
  remember();
  if (!found) showTrouble(new Trouble(`This server has no model “${id}”; here is “${model.name}”.`), null);
}

// --- telling ---

function update() {
  const busy = isBusy();
  // The blank of no width makes a last empty line count, and lets a line end between prompt and answer.
  $("ghost").textContent = `${prompt.value}\u200b`;
  $("stack").className = [answer.pieces.length && "written", work && "writing"].filter(Boolean).join(" ");
  $("write").textContent = busy ? "Stop" : "Write";
  $("write").disabled = !busy && !canWrite();
  $("continue").disabled = busy || !answer.pieces.length || $("answer").classList.contains("stale");
  $("copy").disabled = !prompt.value && !answer.pieces.length;
  $("play").setAttribute("aria-pressed", Boolean(playing));
  $("play").disabled = $("point").disabled = !model?.points.length;
  if (model?.silent) tellState((silence = model.silent));
  else if (silence && $("state").textContent === silence) tellState((silence = ""));
}

const tellState = (text) => ($("state").textContent = text);
const say = (text) => ($("said").textContent = text);

let retry = null;

function showTrouble(error, again) {
  retry = error && again;
  if (error && !(error instanceof Trouble)) console.error(error);
  const [text, button] = $("trouble").children;
  $("trouble").hidden = !error;
  text.textContent = error?.message ?? "";
  button.hidden = !again;
}

async function copied(button, text) {
  const label = button.dataset.label ?? (button.dataset.label = button.textContent);
  try {
    await copy(text);
    button.textContent = "Copied";
    say("Copied.");
  } catch {
    showTrouble(new Trouble("The browser does not let this page copy. Select the text, and copy it by hand."));
  }
  setTimeout(() => (button.textContent = label), 1500);
}

// --- wiring ---

function openSettings(open) {
  $("panel").classList.toggle("open", open);
  $("settings").setAttribute("aria-expanded", open);
}

const ABOUT = [
  {
    at: "looked",
    what: "attention",
    word: "attention",
    words:
      "When it chooses a token, each head of each layer takes of every token before it a share, its weight; all weights of a " +
      "head are 1 in sum. Mean: of all heads, or of all layers. The darker, the more; a first token has often much of what " +
      "a head has no use for.",
  },
  {
    at: "learned",
    what: "loss",
    word: "loss",
    words:
      "How wrong the model is: the mean, over tokens, of minus the natural logarithm of the probability that it gave to " +
      "the one that came. Lower is better; at ln 2 = 0.69 it is as unsure as between two. Training loss is of text that " +
      "it learns from, validation loss of text that it does not: where that rises, it learns by heart.",
  },
  {
    at: "growth",
    what: "a snapshot",
    word: "snapshot",
    words:
      "The weights as they were after so many steps. Let the slider go elsewhere, and the same prompt and seed are " +
      "answered by the model as it was then.",
  },
];
for (const { at, what, word, words } of ABOUT) {
  const [button, told] = explained(what, words, word);
  if (at === "growth") $(at).append(button);
  else $(at).querySelector("h2").append(" ", button);
  $(at).querySelector("h2, .help").after(told);
}

$("answer").classList.add("tinted");
main.addEventListener("scroll", lookWhetherAtEnd);
prompt.addEventListener("input", () => {
  if (isBusy()) stop();
  if (answer.pieces.length) $("answer").classList.add("stale");
  beside.fade();
  update();
});
$("write").addEventListener("click", () => (isBusy() ? stop() : writeAnew()));
$("continue").addEventListener("click", goOn);
$("copy").addEventListener("click", () => copied($("copy"), prompt.value + answer.text));
$("share").addEventListener("click", () => {
  putIntoAddress();
  copied($("share"), location.href);
});
$("trouble")
  .querySelector("button")
  .addEventListener("click", () => {
    $("write").focus();
    retry();
  });
$("play").addEventListener("click", play);
$("point").addEventListener("input", () => {
  playing = null;
  choose(Number($("point").value));
});
$("point").addEventListener("change", () => goTo(Number($("point").value)));
$("newest").addEventListener("click", () => {
  following = !following;
  point = model.points.length - 1;
  tellPoint();
  remember();
});
$("model").addEventListener("change", () => {
  take($("model").value, "");
  remember();
});
$("tint").addEventListener("change", () => $("answer").classList.toggle("tinted", $("tint").checked));
$("settings").addEventListener("click", () => openSettings($("settings").getAttribute("aria-expanded") === "false"));
addEventListener("hashchange", () => models.length && restore());
addEventListener("visibilitychange", refresh);
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) writeAnew();
  } else if (event.key === "Escape") {
    if (answer.isOpen) answer.close();
    else if (isBusy()) stop();
    else if ($("panel").classList.contains("open")) {
      openSettings(false);
      $("settings").focus();
    }
  }
});

update();
if (matchMedia("(hover: hover)").matches) {
  tellState("Ctrl Enter writes, Esc stops");
  prompt.focus();
}
await load();
setTimeout(follow, REFRESH_MS);
