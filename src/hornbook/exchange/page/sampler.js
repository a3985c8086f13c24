// Logits become a token, as infer/sampler.py draws it: the same seed gives the same text as `hornbook generate`.
// In: logits, and {temperature, top_k, top_p, seed}.  Out: an id.

const RACE_BLOCK = 256;

function chosen(logits, { temperature, top_k: k, top_p: p, seed }, position) {
  if (temperature === 0) return logits.reduce((best, each, i) => (each > logits[best] ? i : best), 0);
  const likely = softmax(logits.map((each) => each / temperature));
  if (!Number.isFinite(likely[0])) throw new Error("The model's weights are damaged: its logits are not finite.");
  return firstToArrive(allowed(likely, k, p), mixedSeed(seed, position));
}

function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const likely = logits.map((each) => Math.exp(each - most));
  const sum = likely.reduce((a, b) => a + b, 0);
  return likely.map((each) => each / sum);
}

// The probabilities, zero where a token may not be taken. Of equally likely tokens at the edge, top-k takes all, top-p
// those of the lowest ids.
function allowed(likely, k, p) {
  let ids = [...likely.keys()];
  if (k && k < likely.length) {
    const least = likely.slice().sort()[likely.length - k];
    ids = ids.filter((id) => likely[id] >= least);
  }
  if (p < 1) {
    const wanted = p * ids.reduce((sum, id) => sum + likely[id], 0);
    const least = k ? 0 : ((1 - p) / likely.length) * 0.999; // tokens below have less together than is left out
    const sorted = ids.filter((id) => likely[id] >= least).sort((a, b) => likely[b] - likely[a] || a - b);
    let before = 0;
    const end = sorted.findIndex((id) => {
      const enough = before >= wanted;
      before += likely[id];
      return enough;
    });
    ids = end < 0 ? sorted : sorted.slice(0, end);
  }
  const left = new Float64Array(likely.length);
  for (const id of ids) left[id] = likely[id];
  return left;
}

// Each token arrives after a time drawn from seed and token, divided by its probability. Blocks of tokens race first,
// and then the tokens of the winner.
function firstToArrive(likely, seed) {
  const blocks = Array.from({ length: Math.ceil(likely.length / RACE_BLOCK) }, (_, i) =>
    likely.subarray(i * RACE_BLOCK, (i + 1) * RACE_BLOCK).reduce((a, b) => a + b, 0),
  );
  const block = winner(blocks, seed, 0);
  return block * RACE_BLOCK + winner(likely.subarray(block * RACE_BLOCK, (block + 1) * RACE_BLOCK), seed, 1 + block);
}

function winner(likely, seed, race) {
  let [best, first] = [-1, 0];
  likely.forEach((each, runner) => {
    const speed = each && each / time(seed, race, runner);
    if (speed > best) [best, first] = [speed, runner];
  });
  return first;
}

// Exponentially distributed, by SplitMix64.
function time(seed, race, runner) {
  const whole = (n) => BigInt.asUintN(64, n);
  let mixed = whole((BigInt(runner + 1) + (BigInt(race) << 32n)) * 0x9e3779b97f4a7c15n + seed);
  mixed = whole((mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n);
  mixed = whole((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
  mixed ^= mixed >> 31n;
  return -Math.log((Number(mixed >> 11n) + 0.5) / 2 ** 53);
}

// The first eight bytes of a SHA-256, the lowest first, less the last bit.
function mixedSeed(...parts) {
  const [a, b] = sha256(new TextEncoder().encode(parts.join("/")));
  const turned = (word) => ((word >>> 24) | ((word >>> 8) & 0xff00) | ((word << 8) & 0xff0000) | (word << 24)) >>> 0;
  return ((BigInt(turned(b)) << 32n) | BigInt(turned(a))) >> 1n;
}

// By hand, since crypto.subtle is missing where a page is not served over https. Of fewer than 56 bytes.
function sha256(bytes) {
  const primes = [2];
  for (let n = 3; primes.length < 64; n += 2) if (primes.every((each) => n % each)) primes.push(n);
  const fraction = (x) => Math.floor((x % 1) * 2 ** 32) >>> 0;
  const begin = primes.slice(0, 8).map((each) => fraction(Math.sqrt(each)));
  const block = new DataView(new ArrayBuffer(64));
  bytes.forEach((byte, i) => block.setUint8(i, byte));
  block.setUint8(bytes.length, 0x80);
  block.setUint32(60, bytes.length * 8);
  const turn = (word, by) => (word >>> by) | (word << (32 - by));
  const words = Array.from({ length: 16 }, (_, i) => block.getUint32(4 * i));
  for (let i = 16; i < 64; i++) {
    const [one, two] = [words[i - 15], words[i - 2]];
    const low = turn(one, 7) ^ turn(one, 18) ^ (one >>> 3);
    const high = turn(two, 17) ^ turn(two, 19) ^ (two >>> 10);
    words.push((words[i - 16] + low + words[i - 7] + high) >>> 0);
  }
  let [a, b, c, d, e, f, g, h] = begin;
  words.forEach((word, i) => {
    const high = (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g));
    const one = (h + high + fraction(Math.cbrt(primes[i])) + word) >>> 0;
    const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) >>> 0, c, b, a, (one + two) >>> 0];
  });
  return [a, b, c, d, e, f, g, h].map((each, i) => (each + begin[i]) >>> 0);
}
