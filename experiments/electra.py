"""Pre-training of ELECTRA (Clark et al., 2020, table 6), every size; small as in the paper and as released (small++).

    python launch.py train electra --only electra-small

Cost: electra-small reads 644,000 tokens/s, 25 ms a step, in bfloat16 on one NVIDIA H200 beside two starting runs.
Score of a whole run: not measured here.

All embeddings are tied, the pairs have the format and the masks the 85/15 split of the released code. Masked positions
are drawn without replacement, as in the paper.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import electra
from encoders.objectives.generator import ELECTRA_MASKING
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

# Learning rate, mask rate, steps, batch size, sequence length.
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
        optimizer=AdamW(learning_rate=learning_rate, warmup_steps=10_000, schedule="product"),
        phases=(Phase(until_step=steps, seq_length=seq_length, batch_size=batch_size, format=ElectraPairs()),),
    )
    for name, (learning_rate, mask_rate, steps, batch_size, seq_length) in RECIPES.items()
]
