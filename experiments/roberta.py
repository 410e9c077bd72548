"""Pre-training of RoBERTa (Liu et al., 2019, §3.1 and table 9), both sizes.

    python launch.py train roberta --only roberta-base

Cost and score: not measured here; `python launch.py show roberta` prints parameters, FLOPs and memory of both sizes.

This is fairseq in the points that the paper leaves open: <s> and </s> may be masked, the number of predictions is
rounded at random, a random token is never a special one, every parameter decays. The 160 GB of the paper are five
corpora, of which TFDS has Wikipedia; name the others as text files with `data.corpus`. Few machines fit 8,192 rows at
once: `grad_accum_steps` splits them without changing the loss.
"""

from encoders.data.formats import FullSentences
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

DYNAMIC_MASKING = Masking(dupe_factor=None, mask_special=True, rounding="random", replacements="words")
# Peak learning rate, warm-up steps.
RECIPES = {"roberta-base": (6e-4, 24_000), "roberta-large": (4e-4, 30_000)}

experiments = [
    Experiment(
        name=name,
        model=roberta.SIZES[name],
        objective=MaskedLM(DYNAMIC_MASKING),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec(kind="bpe", vocab_size=roberta.BASE.vocab_size, train_chars=200_000_000),
        ),
        optimizer=AdamW(
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            betas=(0.9, 0.98),
            bias_correction=True,
            clip_norm=None,
            schedule="peak",
            no_decay=(),
        ),
        phases=(Phase(until_step=500_000, seq_length=512, batch_size=8192, format=FullSentences()),),
    )
    for name, (learning_rate, warmup_steps) in RECIPES.items()
]
