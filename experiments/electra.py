"""ELECTRA's pre-training (Clark et al., 2020, table 6), every size; small as in the paper and as released (small++).

Follows the released code in tying all embeddings, in its pair format and in 85/15 masking; follows the paper in
drawing the masked positions without replacement.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import electra
from encoders.objectives.generator import ELECTRA_MASKING
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

# rate, mask rate, steps, rows, length
RECIPES = {
    "electra-small": (5e-4, 0.15, 1_000_000, 128, 128),
    "electra-small++": (5e-4, 0.15, 4_000_000, 128, 128),
    "electra-base": (2e-4, 0.15, 766_000, 256, 512),
    "electra-large": (2e-4, 0.25, 400_000, 2048, 512),
}

experiments = [
    Experiment(
        name=name,
        model=electra.SIZES[name],
        objective=ReplacedTokenDetection(
            generator_width=electra.GENERATOR_WIDTHS[name], masking=replace(ELECTRA_MASKING, mask_rate=mask_rate)
        ),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec(vocab_size=electra.SIZES[name].vocab_size, train_chars=200_000_000),
        ),
        optimizer=AdamW(learning_rate=rate, warmup_steps=10_000, schedule="product"),
        phases=(Phase(until_step=steps, seq_length=length, batch_size=rows, format=ElectraPairs()),),
    )
    for name, (rate, mask_rate, steps, rows, length) in RECIPES.items()
]
