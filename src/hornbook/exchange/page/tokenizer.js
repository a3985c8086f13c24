// Text becomes ids, as text/tokenizer.py cuts it, and ids become bytes.
// In: {tokens, special, merges, pattern, unknown, opening, end, stop}. `tokens` are written in letters for bytes, GPT-2's
// way; `merges` are pairs of ids and what they make, the first to be merged first; without a `pattern` there are none,
// and each character is a token.

class Tokenizer {
  constructor(known) {
    Object.assign(this, known);
    const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    let other = 256;
    this.letters = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : other++));
    this.bytes = new Map(this.letters.map((letter, byte) => [letter, byte]));
    this.ids = new Map(known.tokens.map((token, id) => [token, id]).filter(([token]) => token));
    this.ranks = new Map();
    for (let i = 0; i < known.merges.length; i += 3) {
      const [left, right, made] = known.merges.slice(i, i + 3);
      this.ranks.set(this.#pair(left, right), { rank: i, made });
    }
    if (known.pattern) this.pattern = new RegExp(known.pattern, "gu");
  }

  // A document's beginning, but not its end.
  encodePrompt(text) {
    const ids = [...this.opening, ...this.encode(text)];
    return ids.length ? ids : [this.end];
  }

  encode(text) {
    // Half of a surrogate pair has no bytes.
    const whole = new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(text));
    if (!this.pattern) {
      const pieces = this.by_character ? [...whole] : [...this.#written(whole)];
      return pieces.map((each) => this.ids.get(this.by_character ? this.#written(each) : each) ?? this.unknown)
        .filter((id) => id !== null);
    }
    return [...whole.matchAll(this.pattern)].flatMap(([piece]) => this.#merged(this.#written(piece)));
  }

  bytesOf(id) {
    return Uint8Array.from(this.tokens[id] ?? "", (letter) => this.bytes.get(letter));
  }

  // How a token is told of: as text, or where it is but a part of a character, as its bytes.
  name(id) {
    const bytes = this.bytesOf(id);
    if (!bytes.length) return this.special[id] ?? "";
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
    }
  }

  #written(text) {
    return Array.from(new TextEncoder().encode(text), (byte) => this.letters[byte]).join("");
  }

  #pair(left, right) {
    return left * this.tokens.length + right;
  }

  // Byte-pair encoding of one piece: of all neighbours, those that were merged first in learning; of these, the first.
  #merged(piece) {
    if (this.whole_first && this.ids.has(piece)) return [this.ids.get(piece)];
    const ids = Array.from(piece, (letter) => this.ids.get(letter));
    const rankAt = (i) => this.ranks.get(this.#pair(ids[i], ids[i + 1]))?.rank ?? Infinity;
    const ranks = ids.slice(1).map((_, i) => rankAt(i));
    while (ranks.length) {
      let at = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[at]) at = i;
      if (ranks[at] === Infinity) break;
      ids.splice(at, 2, this.ranks.get(this.#pair(ids[at], ids[at + 1])).made);
      ranks.splice(at, 1);
      if (at > 0) ranks[at - 1] = rankAt(at - 1);
      if (at < ranks.length) ranks[at] = rankAt(at);
    }
    return ids;
  }
}
