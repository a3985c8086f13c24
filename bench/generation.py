"""How fast a 124M model speaks: hornbook beside CTranslate2 and transformers, turn by turn. Row 8.

    python bench/generation.py [--rounds 5] [--tokens 64] [--streams 16] [--ranks FILE] [--out FOLDER]

The model has GPT-2's shape and random weights, written once as a model folder that all sides open;
its embeddings are stretched so that a token's distribution is about as uneven as a trained model's (the entropy is
among the figures): a rule such as top-p costs what it has to leave out. The prompt has 16 tokens.

Each contestant has one model in a process of its own, as its users would, and waits there for its turn, so that no
other's threads are in its way. Each round, each has its turn, in both ways of choosing a token: the likeliest, and
drawn at temperature 0.8 with top-p 0.95. A turn is one text by itself; of hornbook also `--streams` texts in one batch.
transformers serves as many one by one, which takes as long for each as for one. A number type that the processor lacks,
and a peer that is not installed, is passed over, by its name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import RANKS, Claim, Found, medians, run, texts_at_hand, times_faster, turns

from hornbook.base.machine import cpu_has_fbgemm, cpu_multiplies_int8
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import Growing, grow
from hornbook.infer.quantize import dtype_of_cache, prepare_to_speak
from hornbook.model.config import classic
from hornbook.model.folder import load_model, save_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer

# By so much the embeddings of GPT-2's initialisation are stretched: the tokens' for logits as far apart as a trained
# model's, the positions' even more, or each token would be followed by itself.
TOKENS_STRETCHED, POSITIONS_STRETCHED = 6.5, 100.0
END = "<|endoftext|>"
PROMPT = [(7919 * place) % 50_000 for place in range(1, 17)]
WAYS = {"greedy": SamplerConfig(temperature=0.0, top_p=None), "drawn": SamplerConfig(temperature=0.8, top_p=0.95)}
AIMED_BESIDE_TRANSFORMERS = {"float32": "2.1", "int8": "3.7"}


def write_model(folder: Path, tokenizer: TokenizerConfig, tiny: bool = False) -> None:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32} if tiny else {"n_layer": 12, "n_head": 12, "n_embd": 768}
    model = untrained(classic(vocab_size=50_257, context=1024, **sizes))
    assert model.positions is not None
    with torch.no_grad():
        model.embedding.weight.mul_(TOKENS_STRETCHED)
        model.positions.weight.mul_(POSITIONS_STRETCHED)
    folder.mkdir(exist_ok=True)
    save_model(model, train_tokenizer(tokenizer, [], 0), folder)


# What a contestant does in its turn: so many texts of so many tokens, each chosen by these rules.
Speak = Callable[[SamplerConfig, int, int], None]


def hornbook(folder: Path, number_type: str) -> Speak:
    dtype = torch.bfloat16 if number_type == "bfloat16" else torch.float32
    model = prepare_to_speak(load_model(folder, "cpu", dtype), number_type)
    kept_in = dtype_of_cache(model, number_type)

    def speak(rules: SamplerConfig, tokens: int, streams: int) -> None:
        texts = [Growing(PROMPT, rules, seed, tokens) for seed in range(streams)]
        given = sum(1 for _ in grow(model, texts, rows=streams, cache_dtype=kept_in))
        assert given == tokens * streams, given

    return speak


def with_transformers(folder: Path, number_type: str) -> Speak:
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, number_type)).eval()
    ids = torch.tensor([PROMPT])

    def speak(rules: SamplerConfig, tokens: int, streams: int) -> None:
        drawn = {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p, "top_k": 0}
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
                **(drawn if rules.temperature else {"do_sample": False}),
            )
        assert out.shape[1] == len(PROMPT) + tokens, out.shape

    return speak


def with_ctranslate2(folder: Path, number_type: str) -> Speak:
    import ctranslate2
    import transformers
    from ctranslate2.converters import TransformersConverter

    converted = folder.parent / f"ctranslate2-{number_type}"
    TransformersConverter(str(folder)).convert(str(converted), quantization=number_type)
    its = converted / "config.json"  # in which it wants a name for tokens that ours does without
    facts = json.loads(its.read_text())
    named = {name: value or END for name, value in facts.items() if name.endswith("_token")}
    its.write_text(json.dumps(facts | named))
    threads = torch.get_num_threads()
    generator = ctranslate2.Generator(str(converted), compute_type=number_type, intra_threads=threads)
    words = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(PROMPT)

    def speak(rules: SamplerConfig, tokens: int, streams: int) -> None:
        drawn = {"sampling_topk": 0, "sampling_topp": rules.top_p, "sampling_temperature": rules.temperature}
        end = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False}
        [result] = generator.generate_batch([words], **end, **(drawn if rules.temperature else {}))
        assert len(result.sequences_ids[0]) == tokens, len(result.sequences_ids[0])

    return speak


def contestants(folder: Path, found: Found, whole_vocabulary: bool) -> dict[str, Callable[[], Speak]]:
    """Each by its name and number type; who is not here is named."""
    ours = number_types(found)
    there = {f"transformers {name}": partial(with_transformers, folder, name) for name in ("float32", "bfloat16")}
    if importlib.util.find_spec("ctranslate2") is None:
        found.pass_over("CTranslate2, which is not installed")
    elif not whole_vocabulary:  # it knows tokens by their names
        found.pass_over(f"CTranslate2, which wants a name for each token: no {RANKS} (--ranks)")
    else:
        there |= {f"CTranslate2 {name}": partial(with_ctranslate2, folder, name) for name in ("float32", "int8")}
    return there | {f"hornbook {name}": partial(hornbook, folder, name) for name in ours}


@contextmanager
def at_home(makers: dict[str, Callable[[], Speak]]) -> Iterator[dict[str, Connection]]:
    """Each contestant in a process of its own, made ready one after the other; a turn is asked of its connection."""
    spawn = multiprocessing.get_context("spawn")
    homes: dict[str, Connection] = {}
    processes = []
    try:
        for name, maker in makers.items():
            homes[name], there = spawn.Pipe()
            processes.append(spawn.Process(target=wait_for_turns, args=(there, maker), daemon=True))
            processes[-1].start()
            there.close()
            homes[name].recv()
        yield homes
    finally:
        for each in homes.values():
            each.close()
        for process in processes:
            process.join()


def wait_for_turns(asked: Connection, maker: Callable[[], Speak]) -> None:
    """A contestant's process: of each turn its seconds, until nobody asks any more."""
    speak = maker()
    asked.send("ready")
    while True:
        try:
            turn = asked.recv()
        except EOFError:
            return
        began = time.perf_counter()
        speak(*turn)
        asked.send(time.perf_counter() - began)


def a_turn(home: Connection, *turn: Any) -> float:
    home.send(turn)
    seconds: float = home.recv()
    return seconds


def number_types(found: Found) -> list[str]:
    """Those that this processor has instructions for; the others are named."""
    lacking = [] if cpu_multiplies_int8() or cpu_has_fbgemm() else ["int8"]
    for name in lacking:
        found.pass_over(f"{name}, for which this processor has no instructions")
    return [name for name in ("float32", "bfloat16", "int8") if name not in lacking]


def measure(given: argparse.Namespace) -> Found:
    found, tokens = Found(), given.tokens
    said: dict[str, int] = {}
    acts: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        there = given.ranks.is_file()
        kind = TokenizerConfig(kind="gpt2", ranks_file=str(given.ranks)) if there else TokenizerConfig(kind="byte")
        write_model(folder, kind, given.tiny)
        weights, entropy = looked_at(load_model(folder, "cpu", torch.float32))
        with at_home(contestants(folder, found, there)) as homes:
            for way, rules in WAYS.items():
                for contestant, home in homes.items():
                    for streams in (1, given.streams) if contestant.startswith("hornbook") else (1,):
                        key = f"{contestant} {way}" + (f" x{streams}" if streams > 1 else "")
                        acts[key] = partial(a_turn, home, rules, tokens, streams)
                        said[key] = streams * tokens
            seconds = turns(acts, given.rounds)
    rates = {name: said[name] / each for name, each in medians(seconds).items()}
    limit = given.ceilings["memory read, GB/s"] * 1e9 / weights
    found.figures = {
        "tokens": tokens,
        "entropy_nats": entropy,
        "median_tokens_per_second": rates,
        "seconds": seconds,
        "most_tokens_per_second_by_memory": {"float32": limit / 4, "bfloat16": limit / 2, "int8": limit},
    }
    for key in [each for each in rates if each.startswith("hornbook")]:
        found.claims += claims_of(key, rates, seconds)
    return found


def looked_at(model: GPT) -> tuple[int, float]:
    """How many weights a token reads, and how uneven the distribution of one is, in nats."""
    with torch.inference_mode():
        logits = model.logits(torch.tensor([PROMPT]))[0, -1] / WAYS["drawn"].temperature
    read = sum(each.numel() for name, each in model.named_parameters() if "positions" not in name)
    return read, torch.distributions.Categorical(logits=logits).entropy().item()


def claims_of(key: str, rates: dict[str, float], seconds: dict[str, list[float]]) -> list[Claim]:
    """One stream beside each peer; many beside one of ours."""
    _, name, way, *many = key.split(" ")
    if many:
        one = key.removesuffix(f" {many[0]}")
        return [Claim(8, f"{many[0][1:]} streams, {name}, {way}", rates[key], "tokens/s", rates[one], "one stream")]
    nearest, aim = {"float32": ("float32", "1.0"), "bfloat16": ("float32", "1.7"), "int8": ("int8", "1.2")}[name]
    peers = {
        f"CTranslate2 {nearest} {way}": aim,
        f"transformers float32 {way}": AIMED_BESIDE_TRANSFORMERS.get(name, ""),
    }
    return [
        Claim(
            8,
            f"one stream, {name}, {way}",
            rates[key],
            "tokens/s",
            rates[peer],
            peer.removesuffix(f" {way}"),
            aim,
            times_faster(seconds, key, peer),
        )
        for peer, aim in peers.items()
        if peer in rates
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=Path, default=texts_at_hand() / RANKS, help="GPT-2's vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)


if __name__ == "__main__":
    run(__doc__, measure, options)
