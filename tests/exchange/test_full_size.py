"""The published sizes whole: outputs equal transformers', and BERT-large is converted in little memory.

These need the `torch` extra and several GB, and run with `python -m pytest -m live`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from encoders.exchange.convert import import_checkpoint
from encoders.exchange.weights import write_safetensors
from encoders.families import bert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.sentence_pair import NextSentencePrediction
from tests.exchange import references
from tests.exchange.outputs import furthest, ours
from tests.exchange.references import HOME, Case

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
BASE = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, max_position_embeddings=512
)  # fmt: skip
MODERN = BASE | {"num_hidden_layers": 22, "intermediate_size": 1152, "local_attention": 4}  # a window below the rows
ESM_35M = dict(
    hidden_size=480, num_hidden_layers=12, num_attention_heads=20, intermediate_size=1920, max_position_embeddings=1026
)  # fmt: skip
V3 = BASE | references.DISTANCES | {"vocab_size": 128_100, "position_buckets": 256}
SIZES = {
    "bert": Case("bert", "ForPreTraining", BASE | {"vocab_size": 30_522}),
    "roberta": Case("roberta", "ForMaskedLM", BASE | {"vocab_size": 50_265, "max_position_embeddings": 514}),
    "albert": Case("albert", "ForPreTraining", BASE | {"vocab_size": 30_000, "embedding_size": 128}),
    "electra": Case("electra", "ForPreTraining", BASE | {"vocab_size": 30_522, "embedding_size": 768}),
    "deberta-v2": Case("deberta-v2", "ForMaskedLM", V3),
    "modernbert": Case("modernbert", "ForMaskedLM", MODERN | {"vocab_size": 50_368, "max_position_embeddings": 8192}),
    "esm": Case("esm", "ForMaskedLM", ESM_35M),
}


@pytest.mark.parametrize("family", SIZES)
def test_a_base_model_equals_transformers_in_every_layer_and_logit(family, tmp_path):
    pytest.importorskip("torch")
    case, inputs = SIZES[family], references.inputs_of(references.CASES[f"{family}-encoder"], seed=2)
    # The initial deviation of the papers; numbers as large as in the tiny models would make tanh and gelu steps.
    model = references.model_of(case, seed=2, scale=0.02)
    references.safetensors(model, tmp_path / "theirs")
    expected = inputs | references.outputs_of(case, model, inputs)
    del model
    import_checkpoint(tmp_path / "theirs", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / family)
    apart = furthest(ours(tmp_path / "run", expected), expected)
    print(family, {name: f"{value:.1e}" for name, value in apart.items()})
    assert max(apart.values()) < 1e-5


# Not getrusage: it counts what the process that started this one had when it did.
WATCHED = """
import re, sys
sys.path.insert(0, {root!r})
from encoders.exchange.convert import {verb}
{verb}({source!r}, {target!r})
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def test_bert_large_is_converted_within_twice_its_size_of_memory(tmp_path):
    import json
    import shutil
    from functools import partial

    import jax

    from encoders.text.tokenization import load_tokenizer
    from encoders.training import step
    from encoders.training.optimizer import flatten_with_paths

    facts = load_tokenizer(HOME / "vocabularies" / "bert", True).vocab
    shapes = jax.eval_shape(
        partial(step.init_params, 0, MaskedLM(sentence_task=NextSentencePrediction()).module(bert.LARGE, facts))
    )
    theirs, tensors, draw = tmp_path / "theirs", {}, np.random.default_rng(0)
    for path, leaf in flatten_with_paths(shapes):
        for name, shape in bert.ARCHITECTURE.list_hf_tensors(path, leaf.shape):
            tensors[name] = shape, partial(draw.standard_normal, shape, np.float32)
    shutil.copytree(HOME / "vocabularies" / "bert", theirs)
    write_safetensors(theirs / "model.safetensors", dict(sorted(tensors.items())))
    (theirs / "config.json").write_text(
        json.dumps({"model_type": "bert"} | bert.ARCHITECTURE.build_hf_config(bert.LARGE))
    )
    size = (theirs / "model.safetensors").stat().st_size
    steps = (("import_checkpoint", theirs, tmp_path / "run"), ("export_run", tmp_path / "run", tmp_path / "out"))
    for verb, source, target in steps:
        code = WATCHED.format(root=str(ROOT), verb=verb, source=str(source), target=str(target))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peak = int(done.stdout.split()[-1])
        print(f"{verb}: {size / 1e9:.2f} GB of tensors, at most {peak / 1e9:.2f} GB of memory")
        assert peak < 2 * size
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
