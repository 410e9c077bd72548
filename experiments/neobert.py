"""Pre-training of NeoBERT (Le Breton et al., 2025, §3): 1,024 tokens, then an extension to 4,096.

    python launch.py show neobert --only neobert-1024
    python launch.py train neobert --only neobert-1024
    python launch.py train neobert --only neobert-4096

The second run starts from the first. Tokens that are chosen, 20 %, are all replaced by [MASK]; a step has 2,048 rows,
1 M steps at 1,024 and 50,000 at 4,096. The rate is 6e-4 with a cosine to a tenth at 900,000 steps. Cost and score: not
measured here; `show` prints parameters, FLOPs and memory.

Differences that are known: the text is Wikipedia, where the paper has RefinedWeb; the vocabulary is trained here unless
`data.tokenizer.path` names BERT's vocab.txt; the second run has rows of all lengths, where the paper's are of 1,024
tokens and more. The released configuration has a rate of 1e-4; the paper's is taken, from memory.
"""

from encoders.data.formats import FullSentences
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import neobert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW
from encoders.training.schedules import CosineDecay, PiecewiseSchedule, SchedulePiece

ROWS = PackedFormat(FullSentences())
ADAM = dict(warmup_steps=2000, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, clip_norm=1.0, bias_correction=True)


def build_run(name: str, optimizer: AdamW, phase: Phase, **fields) -> Experiment:
    return Experiment(
        name=name,
        model=neobert.BASE,
        objective=MaskedLM(Masking(0.2, split=(1.0, 0.0, 0.0), dupe_factor=None)),
        data=PretrainingData(corpus=("tfds:wikipedia/20230601.en",), tokenizer=TokenizerSpec()),
        optimizer=optimizer,
        phases=(phase,),
        **fields,
    )


