"""fairseq's RoBERTa checkpoints: .pt files, read as checkpoints of transformers.

The options become a config.json and the tensors get the names of transformers' RoBERTa. Source:
https://github.com/facebookresearch/fairseq, models/roberta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from encoders.exchange import pickle_reader
from encoders.exchange.published_folder import PublishedCheckpoint, interpret_checkpoint
from encoders.exchange.weights import CheckpointError, LazyTensor, collect_torch_tensors, drop_ignored

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
    files = [file for file in path.glob("*.pt") if file.is_file() and not (path / "config.json").exists()]
    return files[0] if len(files) == 1 else None


def read_fairseq_checkpoint(path: Path, ignored: Iterable[str] = ()) -> PublishedCheckpoint:
    """Read a .pt file, without the tensors whose renamed names match a pattern of `ignored`. Raises `CheckpointError`
    for one that cannot be read."""
    content, read_tensor = pickle_reader.load_torch_file(path)
    tensors = content.get("model") if isinstance(content, dict) else None
    options = find_model_options(content) if isinstance(tensors, dict) else None
    if options is None:
        raise CheckpointError(f"{path.name} lacks a fairseq model and its options; only fairseq's RoBERTa can be read")
    hf_tensors = {}
    names = [name for name in tensors if isinstance(name, str) and not re.search(VERSION_BUFFER_PATTERN, name)]
    for name, tensor in collect_torch_tensors({name: tensors[name] for name in names}, read_tensor).items():
        renamed = rename_tensor(name, tensor)
        if duplicates := hf_tensors.keys() & renamed.keys():
            raise CheckpointError(f"two tensors have the name {min(duplicates)}")
        hf_tensors |= renamed
    hf_tensors = drop_ignored(hf_tensors, ignored)
    if any(name.startswith("classifier.") for name in hf_tensors):  # fine-tuned files keep an unused masked-token head
        hf_tensors = {name: tensor for name, tensor in hf_tensors.items() if not name.startswith("lm_head.")}
    hf_config = convert_options(options, hf_tensors)
    # fairseq lacks token types: a table of one row of zeros computes the same.
    shape = (1, hf_config["hidden_size"])
    token_types = LazyTensor(shape, "float32", lambda: np.zeros(shape))
    hf_tensors["roberta.embeddings.token_type_embeddings.weight"] = token_types
    return interpret_checkpoint(hf_config, hf_tensors, (path,))


def find_model_options(content: dict) -> dict | None:
    """Return the model's options: `args` of older files, `cfg.model` of newer ones."""
    options, cfg = content.get("args"), content.get("cfg")
    if options is None and isinstance(cfg, dict):
        options = cfg.get("model")
    if isinstance(options, pickle_reader.InertStub):
        options = vars(options)
    return options if isinstance(options, dict) else None


def rename_tensor(name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Return a tensor by its name in transformers; the joint query, key and value of older files become three."""
    tensors = {name: tensor}
    match = re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name)
    size, rest = divmod(tensor.shape[0] if tensor.shape else 0, 3)
    if match and size and not rest:
        tensors = {
            f"{match[1]}{letter}_proj.{match[2]}": LazyTensor(
                (size, *tensor.shape[1:]), tensor.dtype, lambda i=i: tensor.read()[i * size : (i + 1) * size]
            )
            for i, letter in enumerate("qkv")
        }
    for pattern, replacement in RENAME_PATTERNS:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


def convert_options(options: dict, tensors: dict[str, LazyTensor]) -> dict:
    """Return the config.json of a checkpoint; sizes are those of its tensors."""

    def get_size(name: str, axis: int = 0) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return (*shape, 0, 0)[axis]

    layers = {match[1] for name in tensors if (match := re.match(r"roberta\.encoder\.layer\.(\d+)\.", name))}
    num_labels = get_size("classifier.out_proj.weight")
    return {
        "model_type": "roberta",
        "vocab_size": get_size("roberta.embeddings.word_embeddings.weight"),
        "hidden_size": get_size("roberta.embeddings.word_embeddings.weight", axis=1),
        "num_hidden_layers": len(layers),
        "intermediate_size": get_size("roberta.encoder.layer.0.intermediate.dense.weight"),
        "max_position_embeddings": get_size("roberta.embeddings.position_embeddings.weight"),
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": PAD_ID,
        **({"num_labels": num_labels} if num_labels else {}),
        **{hf_name: options.get(name, default) for hf_name, name, default in CONFIG_OPTIONS},
    }
