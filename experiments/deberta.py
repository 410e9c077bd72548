"""Pre-training of DeBERTa-v3 (He et al., 2021, §3 and appendix A), its four English sizes.

    python launch.py show deberta --only deberta-v3-base
    python launch.py train deberta --only deberta-v3-base

Replaced tokens with disentangled embedding sharing: the generator, of the discriminator's width and half its depth,
owns the word table, and the discriminator reads it without a gradient and adds a shift of its own. Cost, as `show`
computes it: base trains 326 M parameters with 1,112 M FLOPs per token, 2.3e21 in all; large 719 M with 3,523 M. Time
and score: not measured here.

Steps, batches, rates, Adam's betas and the weight of 50 are the paper's as remembered, and not checked against its
text; the scripts of microsoft/DeBERTa have rates of 1e-4 and 3e-4 at batches of 64 to 256.

Differences that are known: the generator predicts masks as BERT's and not by the enhanced mask decoder; the released
code draws one masked token in each window of six, and here they are drawn from the whole row; it updates the generator
before the discriminator reads its table, and here one update moves both; Adam has no bias correction, as BERT's. The
text is Wikipedia and not the 160 GB of the paper, and the vocabulary is trained on it by ALBERT's rules, with capitals,
unless `data.tokenizer.path` names the published spm.model.
"""

from encoders.data.formats import FullSentences
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import deberta
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

RATES = {
    "deberta-v3-xsmall": 6e-4,
    "deberta-v3-small": 6e-4,
    "deberta-v3-base": 6e-4,
    "deberta-v3-large": 3e-4,
}

experiments = [
    Experiment(
        name=name,
        model=deberta.SIZES[name],
        objective=ReplacedTokenDetection(
            generator_width=1.0,
            generator_depth=0.5,
            masking=Masking(split=(1.0, 0.0, 0.0), dupe_factor=None),
            tie="disentangled",
        ),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec(
                "unigram", vocab_size=deberta.BASE.vocab_size, lowercase=False, train_chars=200_000_000
            ),
        ),
        optimizer=AdamW(rate, 10_000, betas=(0.9, 0.98), schedule="peak", clip_by_network=True),
        phases=(Phase(500_000, 512, 8192, FullSentences()),),
    )
    for name, rate in RATES.items()
]
