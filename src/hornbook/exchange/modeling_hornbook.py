"""A Hornbook model for transformers 5, whole in this one file, which needs torch and transformers and nothing else.

In: a folder whose config.json describes the model under "hornbook".  Out: the logits that Hornbook computes.
    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
There is no cache of keys and values: each new token is computed from the last `context` tokens anew.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

WIDTH_MULTIPLE = 64


class HornbookConfig(PretrainedConfig):
    model_type = "hornbook"

    def __init__(self, hornbook=None, **kwargs):
        ours = dict(hornbook or {})
        self.hornbook = ours
        self.vocab_size, self.hidden_size = ours.get("vocab_size"), ours.get("n_embd")
        self.num_hidden_layers, self.num_attention_heads = ours.get("n_layer"), ours.get("n_head")
        self.max_position_embeddings = ours.get("context")
        self.tie_word_embeddings = bool(ours.get("tied", False))
        super().__init__(**kwargs)

    def shape(self):
        """The section, with what it leaves to be worked out."""
        shape = SimpleNamespace(**self.hornbook)
        shape.n_kv_head = shape.n_kv_head or shape.n_head
        shape.head_width = shape.head_width or shape.n_embd // shape.n_head
        if shape.mlp_width is None and shape.activation == "swiglu":
            shape.mlp_width = -(-shape.n_embd * 8 // 3 // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        shape.mlp_width = shape.mlp_width or 4 * shape.n_embd
        named = {"head": shape.head_width**-0.5, "width": shape.n_embd**-0.5}
        shape.attention_scale = named.get(shape.attention_scale, shape.attention_scale)
        return shape


def dropped(shape, place):
    return shape.dropout if place in shape.dropout_at else 0.0


def has_values(shape, layer):
    """Every second layer, the last one among them."""
    return shape.value_embeddings and (shape.n_layer - 1 - layer) % 2 == 0


class HornbookLayerNorm(nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if shape.norm_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if "norm" in shape.biases else None

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class HornbookRMSNorm(nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if shape.norm_weight else None

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


NORMS = {"layernorm": HornbookLayerNorm, "rmsnorm": HornbookRMSNorm}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "swiglu": F.silu,
}


class Attention(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_width = shape.n_head, shape.n_kv_head, shape.head_width
        self.scale, self.dropout, self.qk_norm = shape.attention_scale, dropped(shape, "attention"), shape.qk_norm
        heads, shared, bias = self.n_head * self.head_width, self.n_kv_head * self.head_width, "qkv" in shape.biases
        self.query = nn.Linear(shape.n_embd, heads, bias=bias)
        self.key = nn.Linear(shape.n_embd, shared, bias=bias)
        self.value = nn.Linear(shape.n_embd, shared, bias=bias)
        self.out = nn.Linear(heads, shape.n_embd, bias="out" in shape.biases) if shape.out_projection else None
        normed = self.qk_norm != "none"
        self.query_norm = NORMS[shape.norm](shape, self.head_width) if normed else nn.Identity()
        self.key_norm = NORMS[shape.norm](shape, self.head_width) if normed else nn.Identity()
        self.value_share = nn.Parameter(torch.ones(1)) if has_values(shape, layer) else None

    def forward(self, x, rotation, mask, value_embedding):
        B, T, _ = x.shape
        q = self.query(x).view(B, T, self.n_head, self.head_width)
        k = self.key(x).view(B, T, self.n_kv_head, self.head_width)
        v = self.value(x)
        if self.value_share is not None:
            v = v + self.value_share * value_embedding
        v = v.view(B, T, self.n_kv_head, self.head_width)
        if self.qk_norm == "before":
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        if self.qk_norm == "after":
            q, k = self.query_norm(q), self.key_norm(k)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=self.n_head != self.n_kv_head,
        )
        y = y.transpose(1, 2).reshape(B, T, -1)
        return y if self.out is None else self.out(y)


def rotated(x, rotation):
    """Each pair (i, i + D/2) of a head (B, T, H, D), turned by its place's angle."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class MLP(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, bias = shape.mlp_width, "mlp" in shape.biases
        self.activation = ACTIVATIONS[shape.activation]
        self.gate = nn.Linear(shape.n_embd, width, bias=bias) if shape.activation == "swiglu" else None
        self.up = nn.Linear(shape.n_embd, width, bias=bias)
        self.down = nn.Linear(width, shape.n_embd, bias=bias)
        self.dropout = nn.Dropout(dropped(shape, "mlp"))

    def forward(self, x):
        wide = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(wide))


class Block(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        self.attention_norm = NORMS[shape.norm](shape, shape.n_embd)
        self.attention = Attention(shape, layer)
        self.mlp_norm = NORMS[shape.norm](shape, shape.n_embd)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(dropped(shape, "residual"))
        self.shares = nn.Parameter(torch.tensor([1.0, 0.0])) if shape.embedding_skip else None

    def forward(self, x, first, rotation, mask, value_embedding):
        if self.shares is not None:
            x = self.shares[0] * x + self.shares[1] * first
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, value_embedding))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class HornbookForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = HornbookConfig
    _tied_weights_keys = {"head.weight": "embedding.weight"}  # noqa: RUF012 (transformers reads it so)
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        shape = self.shape = config.shape()
        width = shape.n_embd
        self.embedding = nn.Embedding(shape.vocab_size, width)
        self.positions = nn.Embedding(shape.context, width) if shape.positions == "learned" else None
        self.bigrams = nn.Embedding(shape.bigram_embeddings, width) if shape.bigram_embeddings else None
        shared = shape.n_kv_head * shape.head_width
        with_values = [str(layer) for layer in range(shape.n_layer) if has_values(shape, layer)]
        self.values = nn.ModuleDict({layer: nn.Embedding(shape.vocab_size, shared) for layer in with_values})
        self.embedding_norm = NORMS[shape.norm](shape, width) if shape.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(dropped(shape, "embedding"))
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        self.norm = NORMS[shape.norm](shape, width)
        self.head = nn.Linear(width, shape.vocab_size, bias="head" in shape.biases)
        self.post_init()
        if self.can_generate():
            self.generation_config.use_cache = False

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        """The last tokens, as many as the model sees at once."""
        seen = attention_mask if attention_mask is None else attention_mask[:, -self.shape.context :]
        return {"input_ids": input_ids[:, -self.shape.context :], "attention_mask": seen}

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        for name in ("position_ids", "past_key_values", "inputs_embeds"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"{name}: a Hornbook model takes input_ids and attention_mask only")
        if input_ids.shape[1] > self.shape.context:
            raise ValueError(f"{input_ids.shape[1]} tokens; the model sees {self.shape.context} at once")
        there = attention_mask.bool() if attention_mask is not None and not attention_mask.all() else None
        x = first = self.embedded(input_ids, there)
        rotation, mask = self.rotation(input_ids, there, x.dtype), mask_of(there)
        for layer, block in enumerate(self.blocks):
            value_embedding = self.values[str(layer)](input_ids) if str(layer) in self.values else None
            x = block(x, first, rotation, mask, value_embedding)
        logits = self.head(self.norm(x))
        cap = self.shape.logit_cap
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.shape.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

    def embedded(self, ids, there):
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(places_of(ids, there))
        if self.bigrams is not None:
            previous = torch.cat((torch.full_like(ids[:, :1], -1), ids[:, :-1]), dim=1)
            if there is not None:
                before = torch.cat((torch.zeros_like(there[:, :1]), there[:, :-1]), dim=1)
                previous = previous.where(before, -1)
            x = x + self.bigrams(((previous + 1) * 36_313 + ids * 27_191) % self.shape.bigram_embeddings)
        return self.dropout(self.embedding_norm(x))

    def rotation(self, ids, there, dtype):
        """Cosines and sines of every place, (B or 1, T, 1, D/2)."""
        if self.shape.positions != "rotary":
            return None
        width = self.shape.head_width
        halves = torch.arange(0, width, 2, dtype=torch.float32, device=ids.device)
        rates = self.shape.rope_theta ** (-halves / width)
        angles = (places_of(ids, there).float()[..., None] * rates)[:, :, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def places_of(ids, there):
    """Where each token stands, (B or 1, T); padding before a text does not count."""
    if there is None:
        return torch.arange(ids.shape[1], device=ids.device)[None]
    return (there.long().cumsum(-1) - 1).clamp(min=0)


def mask_of(there):
    """What each token may look at, (B, 1, T, T), where there is padding: itself, and the real ones before it."""
    if there is None:
        return None
    earlier = torch.ones(there.shape[1], there.shape[1], dtype=torch.bool, device=there.device).tril()
    itself = torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    return ((earlier & there[:, None, :]) | itself)[:, None]
