"""Encoder-only language models in JAX and Flax, from BERT to ModernBERT, DeBERTa-v3 and ESM-2: trained and tuned.

A corpus is a text file:

>>> import encoders, pathlib, tempfile
>>> text = pathlib.Path(tempfile.mkdtemp(), "text.txt")
>>> _ = text.write_text("The cat sat on the mat.\\nIt slept there.\\n\\n" * 60)

An experiment is a frozen value. A run of it, made by `train`, is a folder:

>>> experiment = encoders.load_experiments("tiny", corpus=text)["tiny"]
>>> encoders.train(experiment, text.parent / "tiny", log=lambda line: None)["steps"]
4

An interrupted run resumes with the same call.

`load` opens that folder, or one of a published checkpoint that was imported, for predictions:

>>> predictor = encoders.load(text.parent / "tiny")
>>> len(next(predictor.fill_masks(["The [MASK] sat."]))[0])
5
>>> next(predictor.embed(["The cat sat."])).shape
(16,)

`load_sentence_encoder` opens it with the methods of a `SentenceTransformer`:

>>> encoders.load_sentence_encoder(text.parent / "tiny").encode(["The cat sat.", "It slept."]).shape
(2, 16)

`apply_settings` changes fields by path:

>>> encoders.apply_settings(experiment, ["phases.0.until_step=100"]).num_steps
100

`register` lets a class of your own take part. A folder that names it opens once `import_file` has imported its file:

>>> from dataclasses import dataclass
>>> @encoders.register
... @dataclass(frozen=True)
... class Paragraphs(encoders.FullSentences):
...     pass

Every class that an experiment can hold is here too: `encoders.Experiment`, `encoders.MaskedLM`, `encoders.AdamW` and so
on. All are imported at their first use. `encoders/README.md` lists the packages and their order.
"""

import importlib
from typing import Any

from encoders.utils.serialization import CLASS_ADDRESSES

FUNCTION_ADDRESSES = {
    "load": "encoders.inference.predictor:load_predictor",
    "load_sentence_encoder": "encoders.inference.sentence_encoder:load_sentence_encoder",
    "train": "encoders.run.loop:train",
    "load_experiments": "encoders.cli.experiment_files:load_experiments",
    "apply_settings": "encoders.experiment:apply_settings",
    "import_file": "encoders.utils.code_files:import_file",
    "register": "encoders.utils.serialization:register_class",
}


def __getattr__(name: str) -> Any:
    address = FUNCTION_ADDRESSES.get(name) or CLASS_ADDRESSES.get(name)
    if address is None:
        raise AttributeError(f"encoders.{name} does not exist; dir(encoders) lists what does")
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTION_ADDRESSES, *CLASS_ADDRESSES])
