"""The same models in Hornbook, or transformers, and in llama.cpp.

    python bench/in_llama_cpp.py FOLDER... [--random-llama] [--converter FILE --ranks FILE] [--out FILE.json]

Needs hornbook and llama-cpp-python, which is llama.cpp with a Python door. Each model folder is exported to GGUF as
f32, f16, bf16 and q8_0. Compared are the ids of texts, and, for prompts from the standard library, the logits after
every token and the 60 tokens that follow greedily. llama.cpp keeps keys and values in float32 here, as we do; by
default it halves them. `--random-llama` adds a model of type llama with random weights, made and run by transformers.
`--converter` is convert_hf_to_gguf.py in llama.cpp's sources (it needs sentencepiece): for random
models of each type with GPT-2's vocabulary, which is the only one of ours that it knows (`--ranks`,
r50k_base.tiktoken), its file and ours are compared byte by byte and key by key.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
import transformers

from hornbook.exchange.gguf import DTYPES, export_gguf
from hornbook.model.config import classic, modern
from hornbook.model.folder import load_config, load_model, save_model
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

GREEDY_TOKENS = 60
PROMPT_TOKENS = 40
TEXTS = [
    "It's  the   user's   'café' — 12,345 naïve 日本語 🚀\t\ttabs \r\n and blanks   ",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n'RE you sure? I'LL make it, we'd've",
    "<|endoftext|> is text here\x00\x01\x7f",
]
Logits = Callable[[list[int]], Any]


def sources() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    return [(library / name).read_text() for name in ("heapq.py", "bisect.py", "shlex.py", "textwrap.py", "abc.py")]


def of_hornbook(folder: Path) -> Logits:
    model = load_model(folder)

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model.logits(torch.tensor([ids]))[0].numpy()

    return logits


def of_transformers(folder: Path) -> Logits:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    return logits


def of_llama_cpp(path: Path, context: int) -> tuple[llama_cpp.Llama, Logits]:
    whole = 0  # GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path), n_ctx=context, logits_all=True, type_k=whole, type_v=whole, n_threads=1, verbose=False
    )

    def logits(ids: list[int]) -> Any:
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    return model, logits


def greedy(logits: Logits, ids: list[int]) -> list[int]:
    ids = list(ids)
    for _ in range(GREEDY_TOKENS):
        ids.append(int(logits(ids)[-1].argmax()))
    return ids[-GREEDY_TOKENS:]


def compared(folder: Path, ours: Logits, context: int, name: str) -> list[dict[str, Any]]:
    tokenizer = Tokenizer.load(folder)
    prompts = [tokenizer.encode(text)[:PROMPT_TOKENS] for text in sources()]
    wanted = [(ours(ids), greedy(ours, ids)) for ids in prompts]
    rows = []
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.gguf"
            export_gguf(folder, path, dtype)
            model, theirs = of_llama_cpp(path, context)
            texts = [*TEXTS, *(text[:20_000] for text in sources())]
            same_ids = [model.tokenize(each.encode(), add_bos=False) == tokenizer.encode(each) for each in texts]
            off = max(
                float(np.abs(theirs(ids) - logits).max()) for ids, (logits, _) in zip(prompts, wanted, strict=True)
            )
            runs = [(greedy(theirs, ids), right) for ids, (_, right) in zip(prompts, wanted, strict=True)]
            agreed = [
                next((at for at, (a, b) in enumerate(zip(found, right, strict=True)) if a != b), GREEDY_TOKENS)
                for found, right in runs
            ]
            rows.append(
                {
                    "model": name,
                    "dtype": dtype,
                    "bytes": path.stat().st_size,
                    "texts_with_the_same_ids": f"{sum(same_ids)} of {len(same_ids)}",
                    "largest_logit": round(max(float(np.abs(logits).max()) for logits, _ in wanted), 2),
                    "logits_off_by_at_most": float(f"{off:.3g}"),
                    "greedy_tokens_before_they_differ": agreed,
                    "an_end": tokenizer.decode(runs[0][0])[-60:],
                }
            )
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def random_llama(tokenizer: Tokenizer, folder: Path) -> None:
    """Queries and keys in groups, so that every part of the layout counts."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.15,
        bos_token_id=tokenizer.end_of_text,
        eos_token_id=tokenizer.end_of_text,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder, 128)


def beside_converter(converter: Path, ranks: Path) -> list[dict[str, Any]]:
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2", ranks_file=str(ranks)), [], 0)
    sizes = {"vocab_size": tokenizer.vocab_size, "n_layer": 2, "n_head": 4, "n_embd": 96, "context": 128}
    rows = []
    for kind in ("gpt2", "qwen3", "llama"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if kind == "llama":
                random_llama(tokenizer, folder)
            else:
                config = classic(**sizes) if kind == "gpt2" else modern(**sizes, n_kv_head=2)
                model = GPT(config)
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.1)
                save_model(model, tokenizer, folder)
            for dtype in ("f32", "f16", "bf16", "q8_0"):
                export_gguf(folder, folder / "model-ours.gguf", dtype)
                config_path = folder / "config.json"
                held = json.loads(config_path.read_text())
                if kind == "gpt2":  # which the converter asks for beside n_positions, as GPT-2 was published
                    config_path.write_text(json.dumps(held | {"n_ctx": held["n_positions"]}))
                command = [sys.executable, converter, folder, "--outfile", folder / "theirs.gguf", "--outtype", dtype]
                subprocess.run(command, check=True, capture_output=True)
                ours, theirs = (gguf.GGUFReader(folder / f"{name}.gguf") for name in ("model-ours", "theirs"))
                stored = [
                    {each.name: (each.tensor_type, each.data.tobytes()) for each in reader.tensors}
                    for reader in (ours, theirs)
                ]
                keys = [
                    {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
                    for reader in (ours, theirs)
                ]
                rows.append(
                    {
                        "model": kind,
                        "dtype": dtype,
                        "tensors": len(stored[0]),
                        "equal_bytes": sum(stored[1].get(name) == value for name, value in stored[0].items()),
                        "only_ours": sorted(keys[0].keys() - keys[1].keys()),
                        "only_theirs": sorted(keys[1].keys() - keys[0].keys()),
                        "keys_that_differ": sorted(
                            key for key in keys[0].keys() & keys[1].keys() if keys[0][key] != keys[1][key]
                        ),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="model folders, such as runs/NAME/checkpoints/step-...")
    parser.add_argument("--random-llama", action="store_true")
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp")
    parser.add_argument("--ranks", type=Path, help="r50k_base.tiktoken, for --converter")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in given.folders:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        rows += compared(
            folder, of_hornbook(folder), load_config(folder).context, f"{kind} {folder.parent.parent.name}"
        )
    if given.random_llama:
        with tempfile.TemporaryDirectory() as place:
            random_llama(Tokenizer.load(given.folders[0]), Path(place))
            rows += compared(Path(place), of_transformers(Path(place)), 128, "llama, random, by transformers")
    versions = {}
    for name in ("llama-cpp-python", "torch", "transformers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    beside = beside_converter(given.converter, given.ranks) if given.converter else []
    if given.out:
        figures = {"versions": versions, "in_llama_cpp": rows, "beside_its_converter": beside}
        given.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
