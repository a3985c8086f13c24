"""How fast a 124M model speaks on two cores: hornbook beside transformers and, where it is installed, CTranslate2, turn
by turn, in one process.

    python bench/generation.py [--rounds 5] [--tokens 64] [--streams 16] [--out FILE.json]

Needs transformers. The model has GPT-2's shape and random weights, written once as a model folder that both sides open;
its embeddings are stretched so that a token's distribution is about as uneven as a trained model's (the entropy is
among the figures): a rule such as top-p costs what it has to leave out. The prompt has 16 tokens.

Each round, every contestant has its turn, in both ways of choosing a token: the likeliest, and drawn at temperature
0.8 with top-p 0.95. A turn is one text by itself; of hornbook also `--streams` texts in one batch. transformers serves
as many one by one, which takes as long for each as for one. Both may use two processors. A number type that the
processor lacks is passed over, by its name.
"""

from __future__ import annotations

import os

# Before any library counts the processors.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the commands do

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

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
PROMPT = [(7919 * place) % 50_000 for place in range(1, 17)]
WAYS = {"greedy": SamplerConfig(temperature=0.0, top_p=None), "drawn": SamplerConfig(temperature=0.8, top_p=0.95)}


def write_model(folder: Path, tokenizer: TokenizerConfig) -> None:
    torch.manual_seed(0)
    model = untrained(classic(vocab_size=50_257, context=1024, n_layer=12, n_head=12, n_embd=768))
    assert model.positions is not None
    with torch.no_grad():
        model.embedding.weight.mul_(TOKENS_STRETCHED)
        model.positions.weight.mul_(POSITIONS_STRETCHED)
    save_model(model, train_tokenizer(tokenizer, [], 0), folder)


def by_hornbook(model: GPT, kept_in: torch.dtype, rules: SamplerConfig, tokens: int, streams: int) -> None:
    texts = [Growing(PROMPT, rules, seed, tokens) for seed in range(streams)]
    given = sum(1 for _ in grow(model, texts, rows=streams, cache_dtype=kept_in))
    assert given == tokens * streams, given


def by_transformers(model: Any, rules: SamplerConfig, tokens: int) -> None:
    drawn = {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p, "top_k": 0}
    ids = torch.tensor([PROMPT])
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


def ctranslate2_models(folder: Path) -> dict[str, Callable[[SamplerConfig, int], None]]:
    """Absent, it is named and passed over."""
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        print("passed over: CTranslate2, which is not installed", flush=True)
        return {}
    # It knows tokens by their names, which only the tokenizer's have; which they are costs nothing.
    words = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens([each % 250 for each in PROMPT])

    def of(number_type: str) -> Callable[[SamplerConfig, int], None]:
        converted = folder.parent / f"ctranslate2-{number_type}"
        TransformersConverter(str(folder)).convert(str(converted), quantization=number_type)
        generator = ctranslate2.Generator(str(converted), compute_type=number_type, intra_threads=2)

        def speak(rules: SamplerConfig, tokens: int) -> None:
            drawn = {"sampling_topk": 0, "sampling_topp": rules.top_p, "sampling_temperature": rules.temperature}
            end = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False}
            [found] = generator.generate_batch([words], **end, **(drawn if rules.temperature else {}))
            assert len(found.sequences_ids[0]) == tokens, len(found.sequences_ids[0])

        return speak

    return {name: of(name) for name in ("float32", "int8")}


def rate(work: Callable[..., None], *arguments: Any, tokens: int) -> float:
    began = time.perf_counter()
    work(*arguments)
    return tokens / (time.perf_counter() - began)


def number_types() -> list[str]:
    """Those that this processor has instructions for; the others are named."""
    lacking = [] if cpu_multiplies_int8() or cpu_has_fbgemm() else ["int8"]
    for name in lacking:
        print(f"passed over: {name}, for which this processor has no instructions", flush=True)
    return [name for name in ("float32", "bfloat16", "int8") if name not in lacking]


def measure(folder: Path, number_of_rounds: int, tokens: int, streams: int) -> dict[str, Any]:
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
    ours = {name: prepare_to_speak(load_model(folder, "cpu", types[name]), name) for name in number_types()}
    theirs = {
        name: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)).eval()
        for name in ("float32", "bfloat16")
    }
    third = ctranslate2_models(folder)
    with torch.inference_mode():
        logits = ours["float32"].logits(torch.tensor([PROMPT]))[0, -1] / WAYS["drawn"].temperature
    entropy = torch.distributions.Categorical(logits=logits).entropy().item()
    rounds: list[dict[str, float]] = []
    for number in range(number_of_rounds + 1):  # the first, in which everything is laid out, is not counted
        found: dict[str, float] = {}
        for way, rules in WAYS.items():
            for name, model in theirs.items():
                found[f"transformers {name} {way}"] = rate(by_transformers, model, rules, tokens, tokens=tokens)
            for name, speak in third.items():
                found[f"CTranslate2 {name} {way}"] = rate(speak, rules, tokens, tokens=tokens)
            for name, mine in ours.items():
                for rows in (1, streams):
                    key = f"hornbook {name} {way}" + (f" x{rows}" if rows > 1 else "")
                    kept_in = dtype_of_cache(mine, name)
                    found[key] = rate(by_hornbook, mine, kept_in, rules, tokens, rows, tokens=rows * tokens)
        found["load"] = os.getloadavg()[0]
        if number:
            rounds.append(found)
            print(json.dumps({key: round(value, 1) for key, value in found.items()}), flush=True)
    return {"entropy_nats": entropy, "rounds": rounds, **summary(rounds, streams)}


def summary(rounds: list[dict[str, float]], streams: int) -> dict[str, Any]:
    """Medians of the rates, and of the ratios within a round: to transformers' float32, and to the same number type of
    CTranslate2."""
    ratios = []
    for each in rounds:
        ratio = {}
        for key, value in each.items():
            program, _, rest = key.partition(" ")
            if program != "hornbook":
                continue
            _, way, *many = rest.split(" ")
            ratio[f"{key} / transformers float32"] = value / each[f"transformers float32 {way}"]
            peer = f"CTranslate2 {key.split()[1]} {way}"
            if peer in each and not many:
                ratio[f"{key} / {peer}"] = value / each[peer]
            if many:
                ratio[f"{key} / one stream"] = value / each[key.removesuffix(f" x{streams}")]
        ratios.append(ratio)
    return {
        "median_tokens_per_second": {key: statistics.median(each[key] for each in rounds) for key in rounds[0]},
        "median_ratio": {key: statistics.median(each[key] for each in ratios) for key in ratios[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", TokenizerConfig(kind="byte"))
        found = measure(Path(name) / "model", given.rounds, given.tokens, given.streams)
    figures = {
        "machine": platform.processor() or platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "tokens": given.tokens,
        **found,
    }
    for table in ("median_tokens_per_second", "median_ratio"):
        print(json.dumps({key: round(value, 2) for key, value in found[table].items()}, indent=2))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
