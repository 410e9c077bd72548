"""RoBERTa's pre-training (Liu et al., 2019, §3.1 and table 9), both sizes.

Follows fairseq where the paper is silent: <s> and </s> may be chosen, the number of predictions is rounded at random,
a random token is never a special one, every parameter decays. The paper's 160 GB are five corpora of which TFDS has
Wikipedia: name the others as text files with `data.corpus`. 8,192 rows a batch fit few machines at once: split them
with `grad_accum_steps`, which changes no loss.
"""

from encoders.data.formats import FullSentences
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

DYNAMIC_MASKING = Masking(dupe_factor=None, mask_special=True, rounding="random", replacements="words")
PEAK_LEARNING_RATES = {"roberta-base": (6e-4, 24_000), "roberta-large": (4e-4, 30_000)}  # rate, warm-up

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
            learning_rate=rate,
            warmup_steps=warmup,
            betas=(0.9, 0.98),
            bias_correction=True,
            clip_norm=None,
            schedule="peak",
            no_decay=(),
        ),
        phases=(Phase(until_step=500_000, seq_length=512, batch_size=8192, format=FullSentences()),),
    )
    for name, (rate, warmup) in PEAK_LEARNING_RATES.items()
]
