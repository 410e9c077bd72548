"""The training steps that `launch.py bench` measures on a GPU: bfloat16, sizes for 80 GB of memory.

    python launch.py bench peers speed_gpu --device gpu --rounds 5 --units 10 --only "*-free"
    python launch.py bench peers speed_gpu --device gpu --rounds 5 --units 10 --only "*-128" --only "*-512"

Cost and speed: not measured here.

Each case has the paper's dropout, or none on attention ("-free"), which lets cuDNN compute the attention.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, modernbert, roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

NSP, MLM = MaskedLM(Masking(), NextSentencePrediction()), MaskedLM(Masking(dupe_factor=None))
MANY_MASKS = MaskedLM(Masking(0.3, dupe_factor=None))
SOP, RTD = MaskedLM(Masking(dupe_factor=40), SentenceOrderPrediction()), ReplacedTokenDetection(generator_width=1 / 3)
PAIRS, SWAPPED = SegmentPairs("random"), SegmentPairs("swapped")

# Model, objective, row format, batch size, sequence length.
CASES = {
    "bert-base-128": (bert.BASE, NSP, PAIRS, 512, 128),
    "bert-base-512": (bert.BASE, NSP, PAIRS, 64, 512),
    "bert-large-128": (bert.LARGE, NSP, PAIRS, 192, 128),
    "bert-large-512": (bert.LARGE, NSP, PAIRS, 24, 512),
    "roberta-base-512": (roberta.BASE, MLM, FullSentences(), 64, 512),
    "albert-base-512": (albert.BASE, SOP, SWAPPED, 64, 512),
    "electra-base-128": (electra.BASE, RTD, ElectraPairs(), 384, 128),
    "modernbert-base-512": (modernbert.BASE, MANY_MASKS, FullSentences(), 64, 512),
    "modernbert-base-8192": (modernbert.BASE, MANY_MASKS, FullSentences(), 4, 8192),
}
DROPOUT = {"": {}, "-free": {"attention_dropout": 0.0, "attention_impl": "cudnn"}}

experiments = [
    Experiment(
        name=name + suffix,
        model=replace(model, dtype="bfloat16", **changes),
        objective=objective,
        data=PretrainingData(tokenizer=TokenizerSpec("bpe", vocab_size=model.vocab_size)),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=100),
        phases=(Phase(until_step=1000, seq_length=seq_length, batch_size=batch_size, format=row_format),),
    )
    for name, (model, objective, row_format, batch_size, seq_length) in CASES.items()
    for suffix, changes in DROPOUT.items()
]
