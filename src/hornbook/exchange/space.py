"""A page on which a language model continues text, word by word: a Space of the Hugging Face hub, or at home.

In: the model in this folder, or the one on the hub that MODEL_ID names.  Out: `python app.py` shows the page.
It needs gradio, torch and transformers, as requirements.txt says.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import gradio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

HERE = Path(__file__).resolve().parent
MODEL = os.environ.get("MODEL_ID") or str(HERE)
LONGEST = 512
HAS_CODE = "modeling_hornbook.py"


def load() -> tuple[Any, Any]:
    # A modelling file that lies beside this one is as trusted as this one.
    trust = Path(MODEL) == HERE and (HERE / HAS_CODE).is_file()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, trust_remote_code=trust)
    return model.eval(), AutoTokenizer.from_pretrained(MODEL)


def build_page() -> Any:
    model, tokenizer = load()
    context = int(model.config.max_position_embeddings)

    def continue_text(prompt: str, length: float, temperature: float, top_p: float, seed: float) -> Iterator[str]:
        """The prompt and what follows, as it comes."""
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.bos_token_id]  # which begins a document
        new = min(int(length), context - 1)
        ids = torch.tensor([ids[-(context - new) :]])  # of a long prompt, the end that leaves room for the answer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        torch.manual_seed(int(seed))

        def generate() -> None:
            try:
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    streamer=streamer,
                    max_new_tokens=new,
                    **(drawn if temperature > 0 else {"do_sample": False}),
                )
            finally:
                streamer.end()  # or the page would wait for ever after an error

        Thread(target=generate, daemon=True).start()
        text = prompt
        yield text
        for piece in streamer:
            text += piece
            yield text

    return gradio.Interface(
        continue_text,
        inputs=[
            gradio.Textbox(label="Begin a text, or leave this empty", lines=4),
            gradio.Slider(1, min(LONGEST, context - 1), value=min(128, context - 1), step=1, label="Tokens to add"),
            gradio.Slider(0, 2, value=0.8, step=0.05, label="Temperature: 0 takes the likeliest"),
            gradio.Slider(0.05, 1, value=0.95, step=0.05, label="Top-p: only the likely ones"),
            gradio.Number(value=0, precision=0, minimum=0, label="Seed: the same gives the same text"),
        ],
        outputs=gradio.Textbox(label="How it goes on", lines=12),
        title=Path(MODEL).name,
        description="This model continues text. It does not answer questions, and what it says may be false.",
        submit_btn="Continue",
        flagging_mode="never",
        analytics_enabled=False,
        api_name="continue",
    )


if __name__ == "__main__":
    build_page().launch()
