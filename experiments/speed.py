"""The training steps that `launch.py bench` measures by default: 8 rows of 128 tokens, or of 512 in packed pairs.

    python launch.py bench peers --only bert-base-8x128
    python launch.py bench peers --only "*-packed" --set data.corpus=TEXTS

Measured on one pinned core of an AMD EPYC (Zen 3), float32: 7,017 ms a step for BERT-base, 1,317 ms for BERT-small,
6,514 ms for ALBERT-base, 1,449 ms for ELECTRA. The comparison with transformers is in experiments/README.md, "Speed".
For a GPU use `speed_gpu`.
"""

from encoders.data.formats import SegmentPairs
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

NSP = MaskedLM(Masking(dupe_factor=10), NextSentencePrediction())
SOP = MaskedLM(Masking(dupe_factor=40), SentenceOrderPrediction())
PAIRS, SWAPPED = SegmentPairs("random"), SegmentPairs("swapped")


def build_benchmark(name, model, objective, row_format, batch_size=8, seq_length=128):
    return Experiment(
        name=name,
        model=model,
        objective=objective,
        data=PretrainingData(tokenizer=TokenizerSpec(vocab_size=model.vocab_size)),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=100),
        phases=(Phase(until_step=1000, seq_length=seq_length, batch_size=batch_size, format=row_format),),
    )


experiments = [
    build_benchmark("bert-base-8x128", bert.BASE, NSP, PAIRS),
    build_benchmark("bert-small-8x128", bert.SMALL, NSP, PAIRS),
    build_benchmark("albert-base-8x128", albert.BASE, SOP, SWAPPED),
    build_benchmark(
        "electra-pair-8x128",
        electra.to_electra_config(bert.SMALL),
        ReplacedTokenDetection(generator_width=1 / 4),
        PAIRS,
    ),
    build_benchmark("bert-large-8x128", bert.LARGE, NSP, PAIRS),
    build_benchmark("bert-small-packed", bert.SMALL, SOP, PackedFormat(SWAPPED), seq_length=512),
    build_benchmark("bert-base-packed", bert.BASE, SOP, PackedFormat(SWAPPED), seq_length=512),
]
