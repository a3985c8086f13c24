// Speaks, beside the page, so that the page never waits.
// In: first what the model is, then its weights in pieces of base64, then {ask, request} and {stop}.
// Out: {ready}, then for each that was asked pieces as `complete` yields them (local.js), and how it ended.

const CONSIDERED_MOST = 20;
let gpt, tokenizer, known, bytes;
let [filled, running] = [0, null];
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();

// Lets messages in; a timer would wait for four milliseconds.
function pause() {
  return new Promise((resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(null);
  });
}

function take(base64) {
  const binary = atob(base64);
  for (let i = 0; i < binary.length; i++) bytes[filled++] = binary.charCodeAt(i);
}

// A safetensors file: the length of its head, the head, the numbers.
function tensorsOf(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const read = ({ dtype, data_offsets: [begin, end] }) => {
    const held = buffer.slice(8 + size + begin, 8 + size + end);
    if (dtype === "I8") return new Int8Array(held);
    return dtype === "F32" ? new Float32Array(held) : widened(new Uint16Array(held));
  };
  const found = {};
  for (const [name, told] of Object.entries(head)) {
    if (name !== "__metadata__" && !name.endsWith(".scales")) {
      const scales = head[`${name}.scales`];
      found[name] = { data: read(told), scales: scales ? read(scales) : null, shape: told.shape };
    }
  }
  return found;
}

// float16 to float32.
function widened(halves) {
  const table = Float32Array.from({ length: 65536 }, (_, bits) => {
    const [exponent, part] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? (1 + part / 1024) * 2 ** (exponent - 15) : part * 2 ** -24;
    return bits & 32768 ? -size : size;
  });
  return Float32Array.from(halves, (bits) => table[bits]);
}

// Where the window starts that predicts the token after so many.
function windowStart(length, context) {
  const stride = context - Math.floor(context / 2);
  return length <= context ? 0 : Math.ceil((length - context) / stride) * stride;
}

async function speak(mine, { prompt, max_tokens: most, logprobs: considered, ...rules }) {
  const ids = tokenizer.encodePrompt(prompt);
  const { context } = gpt.shape;
  const forgotten = windowStart(ids.length, context);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const goesOn = async () => {
    await pause();
    return running === mine;
  };
  let told = [];
  let finish = "length";
  for (let count = 0; count < most; count++) {
    const all = await gpt.logits(ids.slice(windowStart(ids.length, context)), goesOn);
    if (!all) return;
    const logits = all.subarray(0, known);
    const id = chosen(logits, rules, ids.length);
    if (id === tokenizer.stop) {
      finish = "stop";
      break;
    }
    ids.push(id);
    told.push(tellToken(id, softmax(logits), considered));
    const text = decoder.decode(tokenizer.bytesOf(id), { stream: true });
    if (text) {
      postMessage({ of: mine, piece: { text, tokens: told } });
      told = [];
    }
    if (!(await goesOn())) return;
  }
  const rest = decoder.decode();
  if (rest) postMessage({ of: mine, piece: { text: rest, tokens: told } });
  postMessage({ of: mine, ended: { finish, forgotten } });
}

function tellToken(id, likely, most) {
  const best = [];
  for (let other = 0; other < likely.length; other++) {
    if (best.length < Math.min(most, CONSIDERED_MOST) || likely[other] > likely[best.at(-1)]) {
      const at = best.findIndex((each) => likely[each] < likely[other]);
      best.splice(at < 0 ? best.length : at, 0, other);
      best.length = Math.min(best.length, most);
    }
  }
  const considered = new Map();
  for (const other of best) if (!considered.has(tokenizer.name(other))) considered.set(tokenizer.name(other), likely[other]);
  return { text: tokenizer.name(id), p: likely[id], considered: [...considered] };
}

onmessage = async ({ data }) => {
  try {
    if (data.begin) {
      ({ known } = data.begin);
      tokenizer = new Tokenizer(data.begin.tokenizer);
      bytes = new Uint8Array(data.begin.bytes);
      gpt = data.begin.shape;
    } else if (data.weights !== undefined) {
      take(data.weights);
      if (filled < bytes.length) return;
      gpt = new GPT(gpt, tensorsOf(bytes.buffer));
      bytes = null;
      postMessage({ ready: true });
    } else if (data.ask !== undefined) {
      running = data.ask;
      await speak(running, data.request);
    } else if (data.stop === running) {
      running = null;
    }
  } catch (error) {
    postMessage({ of: running, failed: String(error.message ?? error) });
  }
};
