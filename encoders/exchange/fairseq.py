"""fairseq's RoBERTa checkpoints: a .pt file that names its tensors, and holds its options, in its own way.

https://github.com/facebookresearch/fairseq, models/roberta. The options become a configuration of transformers, the
names those of its RoBERTa, and all else is the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from encoders.exchange import pickle_reader
from encoders.exchange.published_folder import PublishedCheckpoint, interpret_checkpoint
from encoders.exchange.weights import CheckpointError, LazyTensor, make_lazy_tensor

RENAME_PATTERNS = (
    (r"(encoder|decoder)\.(?=sentence_encoder|lm_head)", ""),
    (r"sentence_encoder\.embed_tokens", "roberta.embeddings.word_embeddings"),
    (r"sentence_encoder\.embed_positions", "roberta.embeddings.position_embeddings"),
    (r"sentence_encoder\.(emb_layer_norm|layernorm_embedding)", "roberta.embeddings.LayerNorm"),
    (r"sentence_encoder\.layers\.(\d+)", r"roberta.encoder.layer.\1"),
    (r"self_attn\.(q|k|v)_proj", lambda match: f"attention.self.{dict(q='query', k='key', v='value')[match[1]]}"),
    (r"self_attn\.out_proj", "attention.output.dense"),
    (r"self_attn_layer_norm", "attention.output.LayerNorm"),
    (r"\.fc1", ".intermediate.dense"),
    (r"\.fc2", ".output.dense"),
    (r"final_layer_norm", "output.LayerNorm"),
    (r"lm_head\.weight", "lm_head.decoder.weight"),
    (r"classification_heads\.\w+\.(dense|out_proj)", r"classifier.\1"),
)
VERSION_BUFFER_PATTERN = r"sentence_encoder\.version$"  # a buffer
POSITION_OFFSET = 2  # positions start after the padding index, which is 1
# Field of config.json, fairseq's option, and what fairseq takes without it.
CONFIG_OPTIONS = (
    ("num_attention_heads", "encoder_attention_heads", 12),
    ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("classifier_dropout", "pooler_dropout", 0.0),
    ("hidden_act", "activation_fn", "gelu"),
)


def find_fairseq_file(path: Path) -> Path | None:
    """The .pt file that `path` is, or that is the only one in a folder without a config.json."""
    if path.suffix == ".pt" and path.is_file():
        return path
    found = [] if (path / "config.json").exists() else [file for file in path.glob("*.pt") if file.is_file()]
    return found[0] if len(found) == 1 else None


def read_fairseq_checkpoint(path: Path) -> PublishedCheckpoint:
    """The checkpoint in a .pt file. Raises `CheckpointError` for one that cannot be read."""
    try:
        content, numbers = pickle_reader.load_torch_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    tensors = content.get("model") if isinstance(content, dict) else None
    options = find_model_options(content) if isinstance(tensors, dict) else None
    if options is None:
        raise CheckpointError(f"{path.name} is no checkpoint of fairseq: it has no model and its options")
    entries = {}
    for name, tensor in tensors.items():
        if (
            isinstance(name, str)
            and isinstance(tensor, pickle_reader.TorchTensor)
            and not re.search(VERSION_BUFFER_PATTERN, name)
        ):
            parts = rename_tensor(
                name, make_lazy_tensor(tensor.shape, tensor.storage.dtype.name, lambda t=tensor: numbers(t))
            )
            if twice := entries.keys() & parts.keys():
                raise CheckpointError(f"two tensors have the name {min(twice)}")
            entries |= parts
    if any(name.startswith("classifier.") for name in entries):  # fine-tuned files keep the masked-token head unused
        entries = {name: tensor for name, tensor in entries.items() if not name.startswith("lm_head.")}
    config = convert_options(options, entries)
    return interpret_checkpoint(config, add_token_type_table(entries, config["hidden_size"]), (path,))


def find_model_options(content: dict) -> dict | None:
    """The model's options, which older files have in `args` and newer ones in `cfg`."""
    options = content.get("args")
    if options is None and isinstance(content.get("cfg"), dict):
        options = content["cfg"].get("model")
    if isinstance(options, pickle_reader.InertStub):
        options = vars(options)
    return options if isinstance(options, dict) else None


def rename_tensor(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """A tensor under its name in transformers; the older query, key and value in one are three."""
    rows, *rest = tensor.shape or (0,)
    match = re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name)
    if match and rows and rows % 3 == 0:
        size = rows // 3
        slice_rows = lambda index: LazyTensor(
            (size, *rest), tensor.dtype, lambda: tensor.read()[index * size : (index + 1) * size]
        )
        parts = {f"{match[1]}{letter}_proj.{match[2]}": slice_rows(i) for i, letter in enumerate("qkv")}
    else:
        parts = {name: tensor}
    for pattern, replacement in RENAME_PATTERNS:
        parts = {re.sub(pattern, replacement, name): part for name, part in parts.items()}
    return parts


def convert_options(options: dict, tensors: dict[str, LazyTensor]) -> dict:
    """config.json as transformers would have it."""
    matrix_shape = lambda name: (*(tensors[name].shape if name in tensors else ()), 0, 0)[:2]
    vocab, hidden = matrix_shape("roberta.embeddings.word_embeddings.weight")
    layers = {match[1] for name in tensors if (match := re.match(r"roberta\.encoder\.layer\.(\d+)\.", name))}
    classes = matrix_shape("classifier.out_proj.weight")[0]
    return {
        "model_type": "roberta",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "intermediate_size": matrix_shape("roberta.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": matrix_shape("roberta.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": POSITION_OFFSET - 1,
        **({"num_labels": classes} if classes else {}),
        **{ours: options.get(theirs, default) for ours, theirs, default in CONFIG_OPTIONS},
    }


def add_token_type_table(tensors: dict[str, LazyTensor], hidden_size: int) -> dict[str, LazyTensor]:
    """fairseq has no table of segments: one row of zeros is the same."""
    zeros = LazyTensor((1, hidden_size), "float32", lambda: np.zeros((1, hidden_size), np.float32))
    return tensors | {"roberta.embeddings.token_type_embeddings.weight": zeros}
