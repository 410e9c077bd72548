"""NeoBERT in PyTorch by its paper and its tensors' names, for references: transformers has no class for it.

Importing this module registers the classes with transformers' `AutoModel`s.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput


class NeoBERTConfig(PretrainedConfig):
    model_type = "neobert"

    def __init__(
        self, vocab_size=30522, hidden_size=768, num_hidden_layers=28, num_attention_heads=12, intermediate_size=3072,
        max_length=4096, norm_eps=1e-5, embedding_init_range=0.02, hidden_act="SwiGLU", classifier_dropout=0.1, **kwargs
    ):  # fmt: skip
        super().__init__(**kwargs)
        values = dict(locals())
        for name in ("self", "kwargs", "__class__"):
            values.pop(name, None)
        vars(self).update(values)

    def _get_generation_parameters(self):
        return {}  # transformers takes max_length for one


def rotate(x, angles):
    """`x` [b, l, h, k] as k / 2 complex numbers, neighbours together, each turned by its angle."""
    turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2)


class Swiglu(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = 8 * ((int(2 * config.intermediate_size / 3) + 7) // 8)
        self.w12 = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.w3 = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x):
        first, second = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(first) * second)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv, self.wo = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.ffn = Swiglu(config)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(size, config.norm_eps), nn.RMSNorm(size, config.norm_eps)

    def forward(self, x, angles, mask):
        rows, length, size = x.shape
        each = self.qkv(self.attention_norm(x)).view(rows, length, self.heads, 3 * size // self.heads)
        query, key, value = each.chunk(3, dim=-1)
        query, key, value = (part.transpose(1, 2) for part in (rotate(query, angles), rotate(key, angles), value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.wo(mixed.transpose(1, 2).reshape(rows, length, size))
        return x + self.ffn(self.ffn_norm(x))


class Base(PreTrainedModel):
    config_class = NeoBERTConfig

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.uniform_(-0.02, 0.02)


class NeoBERT(Base):
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer_encoder = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.layer_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False, **_):
        size = self.config.hidden_size // self.config.num_attention_heads
        rates = 10_000.0 ** (-torch.arange(0, size, 2).float() / size)
        angles = (torch.arange(input_ids.shape[1])[:, None] * rates)[None, :, None]
        mask = None if attention_mask is None else (attention_mask > 0)[:, None, None]
        states = [self.encoder(input_ids)]
        for layer in self.transformer_encoder:
            states.append(layer(states[-1], angles, mask))
        states[-1] = self.layer_norm(states[-1])
        return BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if output_hidden_states else None
        )


class NeoBERTLMHead(Base):
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = NeoBERT(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, *args, **kwargs):
        found = self.model(*args, **kwargs)
        return MaskedLMOutput(logits=self.decoder(found.last_hidden_state), hidden_states=found.hidden_states)


class NeoBERTForSequenceClassification(Base):
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = NeoBERT(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, *args, **kwargs):
        found = self.model(*args, **kwargs)
        x = torch.tanh(self.dense(self.dropout(found.last_hidden_state[:, 0])))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(x)), hidden_states=found.hidden_states)


AutoConfig.register("neobert", NeoBERTConfig)
AutoModel.register(NeoBERTConfig, NeoBERT)
AutoModelForMaskedLM.register(NeoBERTConfig, NeoBERTLMHead)
AutoModelForSequenceClassification.register(NeoBERTConfig, NeoBERTForSequenceClassification)
