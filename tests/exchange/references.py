"""Small published checkpoints with what transformers computes from them, for every family and head.

    python tests/exchange/references.py [FAMILY ...]

writes `tests/exchange/references/`, from which the tests run without PyTorch; it needs the packages of the `torch`
extra. The live tests make the same models anew with other numbers. Sizes are unequal, so that a
swapped axis shows; rows are padded, and have two segments where the family has.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HOME = Path(__file__).with_suffix("")
VOCABULARY = {
    "bert": 61,
    "roberta": 291,
    "albert": 47,
    "electra": 61,
    "modernbert": 300,
    "eurobert": 300,
    "neobert": 61,
    "esm": 33,
    "deberta-v2": 48,
}
CLASS_PREFIX = {
    "bert": "Bert",
    "roberta": "Roberta",
    "albert": "Albert",
    "electra": "Electra",
    "modernbert": "ModernBert",
    "eurobert": "EuroBert",
    "neobert": "NeoBERT",
    "esm": "Esm",
    "deberta-v2": "DebertaV2",
}
NO_TOKEN_TYPES = ("roberta", "modernbert", "eurobert", "neobert", "esm", "deberta-v2")
LENGTH = 11
OWN_TEXTS = {"esm": ["MKTAYIAKQR", "M K <mask>V\tJlag ala-.\n", "<null_1>AX JJ Z"]}
TEXTS = ["Tan ber, sin lon mut!", "ker (tan)  bér [MASK] lon", "sin, 中 and 7 tan.", " ", ""]


@dataclass(frozen=True)
class Case:
    """`kind` is the class of transformers without its family's name, `config` what differs from `SIZES`."""

    family: str
    kind: str
    config: dict = field(default_factory=dict)
    files: str = "safetensors"  # or sharded, archive, plain (pickles of both layouts), fairseq
    generator: dict | None = None  # of an ELECTRA pair: what its configuration has instead


SIZES = dict(
    hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20, max_position_embeddings=19
)  # fmt: skip
CLASSES = {
    "num_labels": 3,
    "id2label": {0: "no", 1: "perhaps", 2: "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
}
NUMBER = {"num_labels": 1}
SPLIT = {"embedding_size": 8}
# A window shorter than the rows, and layers after the last whole period.
LOCAL = {
    "num_hidden_layers": 5,
    "local_attention": 4,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 90.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}
MEAN = {"classifier_pooling": "mean"}
# Buckets smaller than the rows, of which some hold several distances.
DISTANCES = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 6,
    "type_vocab_size": 0,
}
# Fields without which transformers builds no model of the type, or one that is not published.
NECESSARY = {
    "esm": {"vocab_size": 33, "position_embedding_type": "rotary", "mask_token_id": 32},
    "deberta-v2": DISTANCES,
}
SPECIAL = {
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "eurobert": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "mask_token_id": 2},
    "esm": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "token_dropout": True, **NECESSARY["esm"]},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
}
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 24}
HALF = {"hidden_size": 6, "num_attention_heads": 1, "intermediate_size": 24}
CASES = {
    "bert-pretraining": Case("bert", "ForPreTraining"),
    "bert-masked": Case("bert", "ForMaskedLM", {"hidden_act": "gelu_new"}, files="archive"),
    "bert-classes": Case("bert", "ForSequenceClassification", CLASSES, files="plain"),
    "bert-number": Case("bert", "ForSequenceClassification", NUMBER),
    "bert-questions": Case("bert", "ForQuestionAnswering", files="sharded"),
    "bert-tags": Case("bert", "ForTokenClassification", CLASSES),
    "bert-encoder": Case("bert", "Model"),
    "roberta-masked": Case("roberta", "ForMaskedLM", {"layer_norm_eps": 1e-3}),
    "roberta-fairseq": Case("roberta", "ForMaskedLM", {"layer_norm_eps": 1e-5}, files="fairseq"),
    "roberta-classes": Case("roberta", "ForSequenceClassification", CLASSES),
    "roberta-fairseq-classes": Case("roberta", "ForSequenceClassification", {"layer_norm_eps": 1e-5}, files="fairseq"),
    "roberta-number": Case("roberta", "ForSequenceClassification", NUMBER),
    "roberta-questions": Case("roberta", "ForQuestionAnswering"),
    "roberta-tags": Case("roberta", "ForTokenClassification", CLASSES),
    "roberta-encoder": Case("roberta", "Model"),
    "albert-pretraining": Case("albert", "ForPreTraining", {"num_hidden_groups": 2, "num_hidden_layers": 5} | SPLIT),
    "albert-masked": Case("albert", "ForMaskedLM", {"embedding_size": 12, "hidden_act": "gelu"}),
    "albert-classes": Case("albert", "ForSequenceClassification", CLASSES | SPLIT),
    "albert-number": Case("albert", "ForSequenceClassification", NUMBER | SPLIT),
    "albert-questions": Case("albert", "ForQuestionAnswering", {"num_hidden_groups": 3} | SPLIT),
    "albert-tags": Case("albert", "ForTokenClassification", CLASSES | SPLIT),
    "albert-encoder": Case("albert", "Model", SPLIT),
    "electra-discriminator": Case("electra", "ForPreTraining", SPLIT),
    "electra-generator": Case("electra", "ForMaskedLM", SPLIT),
    "electra-pair": Case("electra", "ForPreTraining", {"embedding_size": 12}, generator=HALF),
    "electra-classes": Case("electra", "ForSequenceClassification", CLASSES | SPLIT),
    "electra-number": Case("electra", "ForSequenceClassification", NUMBER | SPLIT),
    "electra-questions": Case("electra", "ForQuestionAnswering", {"embedding_size": 12}),
    "electra-tags": Case("electra", "ForTokenClassification", CLASSES | SPLIT),
    "electra-encoder": Case("electra", "Model", SPLIT),
    "modernbert-masked": Case("modernbert", "ForMaskedLM", LOCAL),
    "modernbert-classes": Case("modernbert", "ForSequenceClassification", CLASSES | LOCAL),
    "modernbert-mean-classes": Case("modernbert", "ForSequenceClassification", CLASSES | LOCAL | MEAN, files="archive"),
    "modernbert-number": Case("modernbert", "ForSequenceClassification", NUMBER | LOCAL),
    "modernbert-questions": Case("modernbert", "ForQuestionAnswering", LOCAL, files="sharded"),
    "modernbert-tags": Case("modernbert", "ForTokenClassification", CLASSES | LOCAL),
    "eurobert-masked": Case("eurobert", "ForMaskedLM", GROUPED),
    "eurobert-classes": Case("eurobert", "ForSequenceClassification", CLASSES | GROUPED),
    "eurobert-first-classes": Case(
        "eurobert", "ForSequenceClassification", CLASSES | {"classifier_pooling": "bos"}, files="archive"
    ),
    "eurobert-number": Case("eurobert", "ForSequenceClassification", NUMBER | MEAN),
    "eurobert-tags": Case("eurobert", "ForTokenClassification", CLASSES, files="sharded"),
    "eurobert-encoder": Case("eurobert", "Model"),
    "neobert-masked": Case("neobert", "ForMaskedLM", {"intermediate_size": 48}),
    "neobert-classes": Case("neobert", "ForSequenceClassification", CLASSES),
    "neobert-number": Case("neobert", "ForSequenceClassification", NUMBER),
    "neobert-encoder": Case("neobert", "Model"),
    "modernbert-encoder": Case("modernbert", "Model", {"num_hidden_layers": 3} | MEAN),
    "esm-masked": Case("esm", "ForMaskedLM", {"layer_norm_eps": 1e-5, "rope_theta": 90.0}),
    "esm-classes": Case("esm", "ForSequenceClassification", CLASSES, files="archive"),
    "esm-number": Case("esm", "ForSequenceClassification", NUMBER),
    "esm-tags": Case("esm", "ForTokenClassification", CLASSES | {"token_dropout": False}),
    "esm-encoder": Case("esm", "Model", {"num_hidden_layers": 4}, files="sharded"),
    "deberta-v2-masked": Case("deberta-v2", "ForMaskedLM", DISTANCES | {"hidden_act": "gelu_new"}),
    "deberta-v2-released": Case("deberta-v2", "ForMaskedLM", DISTANCES | {"legacy": False}, files="half"),
    "deberta-v2-classes": Case("deberta-v2", "ForSequenceClassification", CLASSES | DISTANCES, files="archive"),
    "deberta-v2-number": Case("deberta-v2", "ForSequenceClassification", NUMBER | DISTANCES),
    "deberta-v2-questions": Case("deberta-v2", "ForQuestionAnswering", DISTANCES | {"max_relative_positions": 7}),
    "deberta-v2-tags": Case("deberta-v2", "ForTokenClassification", CLASSES | DISTANCES),
    "deberta-v2-encoder": Case("deberta-v2", "Model", DISTANCES),
}  # fmt: skip


def get_class(family: str, kind: str):
    """The class of transformers, or of PyTorch here where it has none."""
    import transformers

    name = f"{CLASS_PREFIX[family]}{kind}"
    if family == "neobert":
        from tests.exchange import neobert_torch

        return getattr(
            neobert_torch, {"NeoBERTModel": "NeoBERT", "NeoBERTForMaskedLM": "NeoBERTLMHead"}.get(name, name)
        )
    return getattr(transformers, name)


def config_of(case: Case):
    """The configuration of a case as transformers has it."""
    values = SIZES | {"vocab_size": VOCABULARY[case.family]} | SPECIAL.get(case.family, {}) | case.config
    return get_class(case.family, "Config")(**values)


def model_of(case: Case, seed: int, scale: float = 0.3):
    """A model with random numbers, by default large enough for every part of a small model to matter."""
    import torch

    model = get_class(case.family, case.kind)(config_of(case)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            noise = torch.randn(leaf.shape, generator=draw)
            norm = "norm" in name.lower() and name.endswith("weight")
            leaf.copy_(scale * noise + norm)
    return model


def inputs_of(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Three rows of ids, of unequal lengths, and two segments where the family has them."""
    draw = np.random.default_rng(seed)
    mask = np.array([[1] * size + [0] * (LENGTH - size) for size in (LENGTH, 7, 4)])
    pad_id = SPECIAL.get(case.family, {}).get("pad_token_id", 0)
    ids = np.where(mask, draw.integers(5, VOCABULARY[case.family], mask.shape), pad_id)
    if case.family == "esm":  # whose embeddings depend on the share of <mask>
        ids[0, [2, 3, 7]] = ids[1, 4] = 32
    types = np.where((np.arange(LENGTH) > 2) & (mask > 0), case.family not in NO_TOKEN_TYPES, 0)
    return {"ids": ids, "mask": mask, "types": types}


# The names of their outputs, and ours.
OUTPUTS = {"prediction_logits": "tokens", "seq_relationship_logits": "pair", "sop_logits": "pair"}
LOGITS = {
    "ForMaskedLM": "tokens",
    "ForPreTraining": "replaced",
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "tags",
}


def outputs_of(case: Case, model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states of the embeddings and of every layer, and the logits of every head."""
    import torch

    given = {"input_ids": inputs["ids"], "attention_mask": inputs["mask"]}
    if case.family not in NO_TOKEN_TYPES[1:]:
        given["token_type_ids"] = inputs["types"]
    with torch.no_grad():
        out = model(**{name: torch.tensor(array) for name, array in given.items()}, output_hidden_states=True)
    found = {"hidden": torch.stack(out.hidden_states)}
    found |= {ours: out[theirs] for theirs, ours in OUTPUTS.items() if theirs in out}
    if "logits" in out:
        found[LOGITS[case.kind]] = out.logits
    if "start_logits" in out:
        found["spans"] = torch.stack([out.start_logits, out.end_logits], -1)
    if out.get("pooler_output") is not None:
        found["pooled"] = out.pooler_output
    return {name: array.numpy() for name, array in found.items()}


def make(name: str, folder: Path, seed: int = 0) -> None:
    """Write the checkpoint `name`, the inputs and the outputs to `folder`."""
    case = CASES[name]
    model, inputs = model_of(case, seed), inputs_of(case, seed)
    if case.files == "half":
        model = model.half().float()
    outputs = outputs_of(case, model, inputs)
    folder.mkdir(parents=True)
    SAVE[case.files](model, folder)
    if case.generator is not None:
        twin = Case("electra", "ForMaskedLM", case.config | case.generator)
        generator = model_of(twin, seed + 1)
        generator.electra.embeddings = model.electra.embeddings
        generator.tie_weights()
        outputs |= {"tokens": outputs_of(twin, generator, inputs)["tokens"]}
        safetensors(generator, folder / "generator")
    np.savez_compressed(folder / "expected.npz", **inputs, **outputs)


def safetensors(model, folder: Path, **options) -> None:
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)


def pickled(model, folder: Path, layout: bool) -> None:
    """pytorch_model.bin, with the names that layer norms had at first."""
    import torch

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    state = {old(name): tensor for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout)


def fairseq(model, folder: Path) -> None:
    """model.pt as fairseq's RoBERTa has it: other names, query, key and value in one, no segments.

    A fine-tuned one still has the masked-token head, which nothing uses.
    """
    import torch

    names = (
        ("roberta.embeddings.word_embeddings", "decoder.sentence_encoder.embed_tokens"),
        ("roberta.embeddings.position_embeddings", "decoder.sentence_encoder.embed_positions"),
        ("roberta.embeddings.LayerNorm", "decoder.sentence_encoder.emb_layer_norm"),
        ("roberta.encoder.layer", "decoder.sentence_encoder.layers"),
        ("attention.output.dense", "self_attn.out_proj"),
        ("attention.output.LayerNorm", "self_attn_layer_norm"),
        ("intermediate.dense", "fc1"),
        ("output.dense", "fc2"),
        ("output.LayerNorm", "final_layer_norm"),
        ("lm_head.decoder.weight", "lm_head.weight"),
        ("lm_head", "decoder.lm_head"),
        ("classifier", "classification_heads.mnli"),
    )
    state = model.state_dict()
    # What fairseq has no place for goes into the positions, which every token has one of.
    state["roberta.embeddings.position_embeddings.weight"] += state.pop(
        "roberta.embeddings.token_type_embeddings.weight"
    )
    for at in range(model.config.num_hidden_layers):
        place = f"roberta.encoder.layer.{at}.attention.self"
        for leaf in ("weight", "bias"):
            parts = [state.pop(f"{place}.{part}.{leaf}") for part in ("query", "key", "value")]
            state[f"decoder.sentence_encoder.layers.{at}.self_attn.in_proj_{leaf}"] = torch.cat(parts)
    state.pop("lm_head.decoder.bias", None)
    if "classifier.dense.weight" in state:
        state |= {"lm_head.dense.weight": state["classifier.dense.weight"] + 1, "lm_head.bias": torch.ones(291)}
    renamed = {}
    for name, tensor in state.items():
        for theirs, fairseqs in names:
            name = name.replace(theirs, fairseqs)
        renamed[name] = tensor
    options = argparse.Namespace(encoder_attention_heads=model.config.num_attention_heads, arch="roberta_base")
    torch.save({"args": options, "model": renamed}, folder / "model.pt")


SAVE: dict[str, Callable] = {
    "safetensors": safetensors,
    "half": lambda model, folder: safetensors(model.half(), folder),
    "sharded": lambda model, folder: safetensors(model, folder, max_shard_size="6KB"),
    "archive": lambda model, folder: pickled(model, folder, True),
    "plain": lambda model, folder: pickled(model, folder, False),
    "fairseq": fairseq,
}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.exchange.reference_vocabularies import make_tokenizer

    families = sys.argv[1:] or list(VOCABULARY)
    names = [name for name, case in CASES.items() if case.family in families]
    for folder in (*names, *(f"vocabularies/{family}" for family in families)):
        shutil.rmtree(HOME / folder, ignore_errors=True)
    for name in names:
        make(name, HOME / name)
    for family in families:
        make_tokenizer(family, HOME / "vocabularies" / family)
    total = sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file())
    print(f"{HOME}: {len(names)} checkpoints and {len(families)} vocabularies made, {total / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
