"""Training steps of ModernBERT-base at lengths up to 8,192 tokens, with local attention and without.

    python launch.py bench step speed_long --only "*-1024"
    python launch.py bench peers speed_long --only modernbert-base-512

`bench peers` times transformers beside it, which needs the extra `torch`. Cost: not measured here.
"""

from dataclasses import replace

from encoders.data.formats import FullSentences
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import modernbert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

ROWS = {512: 8, 1024: 4, 4096: 1, 8192: 1}
MODELS = {
    "modernbert-base": modernbert.BASE,
    "modernbert-base-global": replace(modernbert.BASE, global_every=1),
}

experiments = [
    Experiment(
        name=f"{name}-{length}",
        model=model,
        objective=MaskedLM(Masking(0.3, dupe_factor=None)),
        data=PretrainingData(tokenizer=TokenizerSpec("bpe", vocab_size=model.vocab_size)),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=100),
        phases=(Phase(until_step=1000, seq_length=length, batch_size=rows, format=FullSentences()),),
    )
    for length, rows in ROWS.items()
    for name, model in MODELS.items()
]
