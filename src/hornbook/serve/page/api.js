// Talks to the server.
// In: paths and requests.  Out: JSON, or an answer piece by piece; whatever goes wrong, as a `Trouble` in plain words.

export class Trouble extends Error {}

const MENDS = {
  401: "This server wants its key. Open the address that “hornbook serve” printed: it ends in ?key=…",
  404: "The server no longer has this model. A newer checkpoint may have taken its place: choose another point.",
  500: "The server made a mistake of its own. Its terminal says which.",
  503: "The server is shutting down. Start “hornbook serve” again, then try once more.",
};
const GONE = "No answer from the server. See whether “hornbook serve” still runs, and whether the network is up.";

async function troubleOf(response) {
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    return new Trouble(
      `The model is busy with other requests. Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`,
    );
  }
  const said = await response.json().then(
    (body) => body.error?.message,
    () => "",
  );
  return new Trouble(MENDS[response.status] ?? (said || `The server answered ${response.status}, and not why.`));
}

// A request that the reader stopped throws AbortError, as fetch does.
async function ask(path, options) {
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Trouble(GONE);
  });
  if (!response.ok) throw await troubleOf(response);
  return response;
}

export const get = async (path, signal) => (await ask(path, { signal })).json();

const post = (path, body, signal) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

// What the model looked at: {tokens, weights: a list for each head, layers, forgotten}.
export const look = async (request, signal) => (await post("/api/attention", request, signal)).json();

// Yields {text, tokens: [{text, id, p, considered: [[text, p], ...]}]}, several tokens where a character takes several.
// Returns why the model stopped, and how many of the prompt's first tokens it did not see.
export async function* complete(request, signal) {
  const response = await post("/v1/completions", { ...request, stream: true }, signal);
  let finish = null;
  let forgotten = 0;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return { finish, forgotten };
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Trouble(chunk.error.message);
    forgotten = chunk.hornbook?.forgotten ?? 0;
    for (const choice of chunk.choices) {
      finish = choice.finish_reason ?? finish;
      if (choice.text) yield { text: choice.text, tokens: tokensOf(choice) };
    }
  }
  throw new Trouble("The answer broke off: the server went away in the middle of it.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Trouble(GONE);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function tokensOf({ logprobs }) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    text,
    id: logprobs.token_ids?.[i],
    p: Math.exp(logprobs.token_logprobs[i]),
    considered: Object.entries(logprobs.top_logprobs?.[i] ?? {})
      .map(([other, logprob]) => [other, Math.exp(logprob)])
      .sort((a, b) => b[1] - a[1]),
  }));
}
