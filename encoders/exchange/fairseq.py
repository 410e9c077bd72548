"""fairseq's RoBERTa checkpoints: .pt files, read as checkpoints of transformers.

The options become a config.json and the tensors get the names of transformers' RoBERTa. Source:
https://github.com/facebookresearch/fairseq, models/roberta.
"""

from __future__ import annotations

import re
from functools import partial
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
VERSION_BUFFER_PATTERN = r"sentence_encoder\.version$"
PAD_ID = 1
# Field of config.json, option of fairseq, and fairseq's default.
CONFIG_OPTIONS = (
    ("num_attention_heads", "encoder_attention_heads", 12),
    ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("classifier_dropout", "pooler_dropout", 0.0),
    ("hidden_act", "activation_fn", "gelu"),
)


def find_fairseq_file(path: Path) -> Path | None:
    """Return the .pt file at `path`, or the only one in a folder without config.json; otherwise None."""
    if path.suffix == ".pt" and path.is_file():
        return path
    if (path / "config.json").exists():
        return None
    files = [file for file in path.glob("*.pt") if file.is_file()]
    return files[0] if len(files) == 1 else None


def read_fairseq_checkpoint(path: Path) -> PublishedCheckpoint:
    """Read a .pt file. Raises `CheckpointError` for one that cannot be read."""
    try:
        content, read_tensor = pickle_reader.load_torch_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    tensors = content.get("model") if isinstance(content, dict) else None
    options = find_model_options(content) if isinstance(tensors, dict) else None
    if options is None:
        raise CheckpointError(f"{path.name} lacks a fairseq model and its options; only fairseq's RoBERTa can be read")
    hf_tensors = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, pickle_reader.TorchTensor):
            continue
        if re.search(VERSION_BUFFER_PATTERN, name):
            continue
        lazy_tensor = make_lazy_tensor(tensor.shape, tensor.storage.dtype.name, partial(read_tensor, tensor))
        renamed = rename_tensor(name, lazy_tensor)
        if duplicates := hf_tensors.keys() & renamed.keys():
            raise CheckpointError(f"two tensors have the name {min(duplicates)}")
        hf_tensors |= renamed
    if any(name.startswith("classifier.") for name in hf_tensors):  # fine-tuned files keep an unused masked-token head
        hf_tensors = {name: tensor for name, tensor in hf_tensors.items() if not name.startswith("lm_head.")}
    hf_config = convert_options(options, hf_tensors)
    return interpret_checkpoint(hf_config, add_token_type_table(hf_tensors, hf_config["hidden_size"]), (path,))


def find_model_options(content: dict) -> dict | None:
    """Return the model's options: `args` of older files, `cfg.model` of newer ones."""
    options = content.get("args")
    if options is None and isinstance(content.get("cfg"), dict):
        options = content["cfg"].get("model")
    if isinstance(options, pickle_reader.InertStub):
        options = vars(options)
    return options if isinstance(options, dict) else None


def rename_tensor(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Return a tensor by its name in transformers; the joint query, key and value of older files become three."""
    tensors = {name: tensor}
    match = re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name)
    num_rows = tensor.shape[0] if tensor.shape else 0
    if match and num_rows and num_rows % 3 == 0:
        size = num_rows // 3
        tensors = {
            f"{match[1]}{letter}_proj.{match[2]}": slice_rows(tensor, i * size, (i + 1) * size)
            for i, letter in enumerate("qkv")
        }
    for pattern, replacement in RENAME_PATTERNS:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


def slice_rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Return rows of a tensor, read when needed."""
    return LazyTensor((stop - start, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[start:stop])


def convert_options(options: dict, tensors: dict[str, LazyTensor]) -> dict:
    """Return the config.json of a checkpoint; sizes are those of its tensors."""

    def get_shape(name: str) -> tuple[int, ...]:
        shape = tensors[name].shape if name in tensors else ()
        return (*shape, 0, 0)[:2]

    vocab_size, hidden_size = get_shape("roberta.embeddings.word_embeddings.weight")
    layers = {match[1] for name in tensors if (match := re.match(r"roberta\.encoder\.layer\.(\d+)\.", name))}
    num_labels = get_shape("classifier.out_proj.weight")[0]
    return {
        "model_type": "roberta",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "intermediate_size": get_shape("roberta.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": get_shape("roberta.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": PAD_ID,
        **({"num_labels": num_labels} if num_labels else {}),
        **{hf_name: options.get(name, default) for hf_name, name, default in CONFIG_OPTIONS},
    }


def add_token_type_table(tensors: dict[str, LazyTensor], hidden_size: int) -> dict[str, LazyTensor]:
    """Add a token type table, which fairseq lacks: one row of zeros computes the same."""
    zeros = LazyTensor((1, hidden_size), "float32", lambda: np.zeros((1, hidden_size), np.float32))
    return tensors | {"roberta.embeddings.token_type_embeddings.weight": zeros}
