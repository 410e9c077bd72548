"""Can each objective be learned at all? About 1,100 fixed pairs, over and over, until they are known by heart.

Nearly all of the embedded text is held out to leave that few, and each pair keeps its one mask and its label. Read the
last training row of `metrics.jsonl`, not the held-out scores: nothing here is meant to generalise.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import bert, electra
from encoders.objectives.generator import MASKING
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW

SMALL = dict(
    vocab=2048, hidden=128, layers=2, heads=2, intermediate=512, positions=64,
    deviation=128**-0.5, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def member(name, model, objective, form, steps):
    return Experiment(
        name=f"memorise-{name}",
        model=replace(model, **SMALL),
        objective=objective,
        data=Data(vocabulary=Vocabulary(size=2048, sample=4_000_000), heldout=0.987),
        optimizer=AdamW(rate=1e-3, warmup=50, correction=True, schedule="constant"),
        phases=(Phase(until=steps, length=64, batch=32, format=form),),
        cadence=Cadence(log=50, evaluate=1_000_000, save=1_000_000, heldout=4),
    )


experiments = [
    member("nsp", bert.TINY, Joint(Masking(copies=1), NextSentence()), SegmentPairs("random", short=0.0), 700),
    member("sop", bert.TINY, Joint(Masking(copies=1), SentenceOrder()), SegmentPairs("swapped", short=0.0), 900),
    member(
        "rtd",
        electra.of(bert.TINY),
        ReplacedTokens(width=1 / 2, tokens=replace(MASKING, copies=1)),
        ElectraPairs(),
        1500,
    ),
]
