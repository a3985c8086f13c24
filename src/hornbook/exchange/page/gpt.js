// The transformer, as model/gpt.py computes it, for one text.
// In: a shape, tensors by their names, and the ids of a window.  Out: the logits of the token that comes next.
// Weights are {data, scales, shape}: float32, or int8 with a scale for each row. What goes through is float64: a
// browser multiplies those as fast, and sums lose nothing. What a model has beyond the usual, its tensors tell.

const BLOCK = 16; // tokens of a prompt at a time

const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  swiglu: (x) => x / (1 + Math.exp(-x)),
};

// The series without alternating signs, so that nothing cancels.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let [term, sum] = [x, x];
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

// (T, columns) times a matrix (rows, columns): (T, rows). Reading the weights is what it costs, so that each that is
// read serves four tokens; with a single token, each number of it serves four rows.
function multiply(weight, bias, x, T) {
  const { data, scales } = weight;
  const [rows, columns] = weight.shape;
  const out = new Float64Array(T * rows);
  let t = 0;
  for (; t + 4 <= T; t += 4) fourTokens(data, x, t, rows, columns, out);
  for (; t < T; t++) oneToken(data, x, t, rows, columns, out);
  if (scales) for (let t = 0; t < T; t++) for (let r = 0; r < rows; r++) out[t * rows + r] *= scales[r];
  if (bias) for (let t = 0; t < T; t++) for (let r = 0; r < rows; r++) out[t * rows + r] += bias.data[r];
  return out;
}

function oneToken(data, x, t, rows, columns, out) {
  const token = x.subarray(t * columns, (t + 1) * columns);
  let r = 0;
  for (; r + 4 <= rows; r += 4) {
    let [a, b, c, d] = [0, 0, 0, 0];
    let at = r * columns;
    for (let i = 0; i < columns; i++, at++) {
      const value = token[i];
      a += data[at] * value;
      b += data[at + columns] * value;
      c += data[at + 2 * columns] * value;
      d += data[at + 3 * columns] * value;
    }
    const to = t * rows + r;
    out[to] = a;
    out[to + 1] = b;
    out[to + 2] = c;
    out[to + 3] = d;
  }
  for (; r < rows; r++) {
    let sum = 0;
    for (let i = 0; i < columns; i++) sum += data[r * columns + i] * token[i];
    out[t * rows + r] = sum;
  }
}

function fourTokens(data, x, t, rows, columns, out) {
  const [first, second, third, fourth] = [0, 1, 2, 3].map((i) => x.subarray((t + i) * columns, (t + i + 1) * columns));
  for (let r = 0; r < rows; r++) {
    let [a, b, c, d] = [0, 0, 0, 0];
    let at = r * columns;
    for (let i = 0; i < columns; i++, at++) {
      const value = data[at];
      a += value * first[i];
      b += value * second[i];
      c += value * third[i];
      d += value * fourth[i];
    }
    out[t * rows + r] = a;
    out[(t + 1) * rows + r] = b;
    out[(t + 2) * rows + r] = c;
    out[(t + 3) * rows + r] = d;
  }
}

class GPT {
  #seen = []; // the ids of which the cache holds keys and values

  constructor(shape, tensors) {
    Object.assign(this, { shape, tensors });
    const held = shape.context * shape.kv_heads * shape.head_width;
    this.keys = Array.from({ length: shape.n_layer }, () => new Float32Array(held));
    this.values = Array.from({ length: shape.n_layer }, () => new Float32Array(held));
  }

  // What the cache holds of these ids is not computed again. Waits for `pause` between the blocks of a long prompt, and
  // gives up, with null, where that tells it to.
  async logits(ids, pause = () => true) {
    let known = 0;
    while (known < Math.min(this.#seen.length, ids.length - 1) && this.#seen[known] === ids[known]) known++;
    this.#seen.length = known;
    for (;;) {
      const block = ids.slice(this.#seen.length, this.#seen.length + BLOCK);
      const x = this.#through(block);
      this.#seen.push(...block);
      if (this.#seen.length === ids.length) return this.#readOff(x.slice(x.length - this.shape.n_embd));
      if (!(await pause())) return null;
    }
  }

  #readOff(x) {
    const head = this.tensors["head.weight"] ?? this.tensors["embedding.weight"];
    const logits = multiply(head, this.tensors["head.bias"], this.#norm("norm", x, x.length), 1);
    const cap = this.shape.logit_cap;
    return cap ? logits.map((each) => cap * Math.tanh(each / cap)) : logits;
  }

  // The newest ids through all blocks: (T, n_embd).
  #through(ids) {
    const { n_layer: layers, n_embd: width, activation } = this.shape;
    const T = ids.length;
    const first = this.#embedded(ids);
    let x = first.slice();
    for (let layer = 0; layer < layers; layer++) {
      const block = `blocks.${layer}`;
      const shares = this.tensors[`${block}.shares`]?.data;
      if (shares) x = x.map((each, i) => shares[0] * each + shares[1] * first[i]);
      add(x, this.#attention(layer, this.#norm(`${block}.attention_norm`, x, width), ids));
      const normed = this.#norm(`${block}.mlp_norm`, x, width);
      const gate = this.tensors[`${block}.mlp.gate.weight`] && this.#linear(`${block}.mlp.gate`, normed, T);
      const up = this.#linear(`${block}.mlp.up`, normed, T);
      const active = (gate ?? up).map(ACTIVATIONS[activation]);
      if (gate) for (let i = 0; i < up.length; i++) active[i] *= up[i];
      add(x, this.#linear(`${block}.mlp.down`, active, T));
    }
    return x;
  }

  #embedded(ids) {
    const { n_embd: width, embedding_norm: normed, bigram_embeddings: pairs } = this.shape;
    const start = this.#seen.length;
    const x = new Float64Array(ids.length * width);
    ids.forEach((id, t) => {
      const row = x.subarray(t * width, (t + 1) * width);
      addRow(row, this.tensors["embedding.weight"], id);
      if (this.tensors["positions.weight"]) addRow(row, this.tensors["positions.weight"], start + t);
      if (!pairs) return;
      const before = t ? ids[t - 1] : (this.#seen.at(-1) ?? -1);
      addRow(row, this.tensors["bigrams.weight"], ((before + 1) * 36313 + id * 27191) % pairs);
    });
    return normed ? this.#norm("embedding_norm", x, width) : x;
  }

  #attention(layer, x, ids) {
    const { n_head: heads, kv_heads: kept, head_width: width, qk_norm: normed, positions, scale } = this.shape;
    const [T, start, name] = [ids.length, this.#seen.length, `blocks.${layer}.attention`];
    let queries = this.#linear(`${name}.query`, x, T);
    let keys = this.#linear(`${name}.key`, x, T);
    const values = this.#linear(`${name}.value`, x, T);
    const table = this.tensors[`values.${layer}.weight`];
    if (table) {
      const share = this.tensors[`${name}.value_share`].data[0];
      ids.forEach((id, t) => addRow(values.subarray(t * kept * width, (t + 1) * kept * width), table, id, share));
    }
    const norm = () => {
      queries = this.#norm(`${name}.query_norm`, queries, width);
      keys = this.#norm(`${name}.key_norm`, keys, width);
    };
    if (normed === "before") norm();
    if (positions === "rotary") {
      for (let t = 0; t < T; t++) {
        this.#turn(queries.subarray(t * heads * width, (t + 1) * heads * width), start + t);
        this.#turn(keys.subarray(t * kept * width, (t + 1) * kept * width), start + t);
      }
    }
    if (normed === "after") norm();
    this.keys[layer].set(keys, start * kept * width);
    this.values[layer].set(values, start * kept * width);
    const found = new Float64Array(T * heads * width);
    for (let t = 0; t < T; t++) {
      for (let head = 0; head < heads; head++) {
        const at = (t * heads + head) * width;
        const shared = Math.floor(head / (heads / kept)) * width;
        const query = queries.subarray(at, at + width);
        attend(query, this.keys[layer], this.values[layer], start + t + 1, kept * width, shared, scale, found, at);
      }
    }
    return this.tensors[`${name}.out.weight`] ? this.#linear(`${name}.out`, found, T) : found;
  }

  // Rotary: each pair (i, i + D/2) of a head by an angle that grows with the place. Rounded where torch rounds.
  #turn(x, place) {
    const { head_width: width, rope_theta: base } = this.shape;
    for (let i = 0; i < width / 2; i++) {
      const angle = Math.fround(place * Math.fround(base ** Math.fround((-2 * i) / width)));
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let left = i; left < x.length; left += width) {
        const [a, b] = [x[left], x[left + width / 2]];
        x[left] = a * cos - b * sin;
        x[left + width / 2] = b * cos + a * sin;
      }
    }
  }

  #linear(name, x, T) {
    return multiply(this.tensors[`${name}.weight`], this.tensors[`${name}.bias`], x, T);
  }

  // Each `width` numbers for themselves.
  #norm(name, x, width) {
    const [weight, bias] = [this.tensors[`${name}.weight`]?.data, this.tensors[`${name}.bias`]?.data];
    const { norm, norm_eps: eps } = this.shape;
    const out = new Float64Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let [mean, square] = [0, 0];
      if (norm === "layernorm") for (let i = 0; i < width; i++) mean += x[start + i] / width;
      for (let i = 0; i < width; i++) square += (x[start + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(square / width + eps);
      for (let i = 0; i < width; i++) {
        out[start + i] = (x[start + i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
      }
    }
    return out;
  }
}

function add(x, more) {
  for (let i = 0; i < x.length; i++) x[i] += more[i];
}

function addRow(x, { data, scales, shape }, row, share = 1) {
  const factor = share * (scales ? scales[row] : 1);
  for (let i = 0; i < x.length; i++) x[i] += factor * data[row * shape[1] + i];
}

// What one query finds among `length` keys, which lie `stride` apart, into `out` from `to` on.
function attend(query, keys, values, length, stride, first, scale, out, to) {
  const width = query.length;
  const weights = new Float64Array(length);
  let most = -Infinity;
  for (let s = 0, at = first; s < length; s++, at += stride) {
    let score = 0;
    for (let i = 0; i < width; i++) score += query[i] * keys[at + i];
    most = Math.max(most, (weights[s] = score * scale));
  }
  let sum = 0;
  for (let s = 0; s < length; s++) sum += weights[s] = Math.exp(weights[s] - most);
  for (let s = 0, at = first; s < length; s++, at += stride) {
    const share = weights[s] / sum;
    for (let i = 0; i < width; i++) out[to + i] += share * values[at + i];
  }
}
