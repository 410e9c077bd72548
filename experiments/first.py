"""One complete experiment: a small masked language model on the docstrings of the packages installed here, no download.

    python launch.py train first

Cost: 3 min 46 s of processor time, with the preparation of the store, on two shared cores (AMD EPYC).
Score: accuracy at [MASK] 18.4 % ±0.5 %; guessing the commonest token reaches 5.5 %.
"""

from encoders.data.formats import FullSentences
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

experiments = [
    Experiment(
        name="first",
        model=EncoderConfig(
            vocab_size=2048,
            embedding_size=128,
            hidden_size=128,
            num_layers=2,
            num_heads=2,
            intermediate_size=512,
            max_positions=64,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            init_std=128**-0.5,  # at the papers' 0.02 so small a model learns far later
        ),
        objective=MaskedLM(Masking(mask_rate=0.15, dupe_factor=None)),  # a new mask in every pass
        data=PretrainingData(corpus=("embedded",), tokenizer=TokenizerSpec(vocab_size=2048, train_chars=4_000_000)),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, bias_correction=True),
        phases=(Phase(until_step=1000, seq_length=64, batch_size=32, format=FullSentences()),),
        seed=0,
    )
]
