"""Small published vocabularies with the ids that transformers gives; `references.py` writes them."""

import json
from pathlib import Path

from tests.exchange.references import CLASS_PREFIX, OWN_TEXTS, TEXTS, VOCABULARY

# Special tokens in the order of their ids; EuroBERT's are Llama's.
BYTE_LEVEL_NAMES = {
    "modernbert": {f"{token}_token": f"[{token.upper()}]" for token in ("pad", "unk", "cls", "sep", "mask")},
    "eurobert": {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|end_of_text|>",
        "mask_token": "<|mask|>",
    },
}


# Name of the file, and options of its training, which leave [MASK] to be added to DeBERTa's.
SENTENCEPIECE = {
    "albert": (
        "spiece",
        dict(vocab_size=47, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"]),
    ),
    "deberta-v2": (
        "spm",
        dict(vocab_size=47, bos_id=1, eos_id=2, unk_id=3)
        | dict(pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]"),
    ),
}


def make_tokenizer(family: str, folder: Path) -> None:
    """The vocabulary of a family in its published files, and the ids transformers gives `TEXTS`."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer, trainers
    from tokenizers.implementations import BertWordPieceTokenizer

    from tests import texts

    folder.mkdir(parents=True)
    lines = [line for document in texts.made_up(60) for line in document]
    size = VOCABULARY[family]
    settings = {"do_lower_case": True} if family in ("bert", "electra", "neobert") else {}
    if family == "roberta":
        tokenizer = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        tokenizer.train_from_iterator(lines, size - 1, min_frequency=1, special_tokens=special, show_progress=False)
        tokenizer.save_model(str(folder))
        vocabulary = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<mask>": len(vocabulary)}))
    elif family in BYTE_LEVEL_NAMES:
        from tokenizers import processors

        tokenizer, settings = ByteLevelBPETokenizer(), BYTE_LEVEL_NAMES[family]
        special = list(dict.fromkeys(settings.values()))
        tokenizer.train_from_iterator(lines, size, min_frequency=1, special_tokens=special, show_progress=False)
        first, last = (
            settings.get(f"{a}_token", settings.get(f"{b}_token")) for a, b in (("cls", "bos"), ("sep", "eos"))
        )
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B {last}",
            special_tokens=[(name, special.index(name)) for name in (first, last)],
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    elif family in SENTENCEPIECE:
        import sentencepiece

        (folder / "lines.txt").write_text("\n".join(lines))
        name, options = SENTENCEPIECE[family]
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "lines.txt"), model_prefix=str(folder / name), pad_id=0, minloglevel=2,
            hard_vocab_limit=True, normalization_rule_name="nfkc", **options,
        )  # fmt: skip
        for extra in ("lines.txt", f"{name}.vocab"):
            (folder / extra).unlink()
    elif family == "esm":
        (folder / "vocab.txt").write_text("\n".join(transformers.models.esm.configuration_esm.get_default_vocab_list()))
    else:
        tokenizer = BertWordPieceTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
        )
        tokenizer._tokenizer.train_from_iterator(lines, trainer)
        tokenizer.save_model(str(folder))
    kind = f"{CLASS_PREFIX['bert' if family == 'neobert' else family]}Tokenizer"
    kind = "PreTrainedTokenizerFast" if family in BYTE_LEVEL_NAMES else kind
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | settings))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = {text: theirs(text, add_special_tokens=False)["input_ids"] for text in (*TEXTS, *OWN_TEXTS.get(family, ()))}
    (folder / "ids.json").write_text(json.dumps(ids))
