"""Pre-training of NeoBERT (Le Breton et al., 2025, §3): 1,024 tokens, then an extension to 4,096.

    python launch.py show neobert --only neobert-1024
    python launch.py train neobert --only neobert-1024
    python launch.py train neobert --only neobert-4096

The second run starts from the first. Tokens that are chosen, 20 %, are all replaced by [MASK]. A step has 2,048 rows of
1,024 tokens, or 512 of 4,096; there are 1 M and 50,000 steps. The rate is 6e-4 and decays as a cosine to a tenth at
900,000 steps. Cost and score: not measured here; `show` prints parameters, FLOPs and memory.

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
from encoders.training.schedules import PiecewiseSchedule, SchedulePiece

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


STEPS = 1_000_000
COSINE = PiecewiseSchedule(
    (
        SchedulePiece(2000),
        SchedulePiece(900_000, end=0.1, decay="cosine"),
        SchedulePiece(STEPS, start=0.1, end=0.1),
    )
)
LAST_RATE = PiecewiseSchedule((SchedulePiece(50_000),))

experiments = [
    build_run("neobert-1024", AdamW(6e-4, schedule=COSINE, **ADAM), Phase(STEPS, 1024, 2048, ROWS)),
    build_run(
        "neobert-4096",
        AdamW(6e-5, schedule=LAST_RATE, **ADAM | {"warmup_steps": 0}),
        Phase(50_000, 4096, 512, ROWS),
        init_from="runs/neobert-1024",
    ),
]
