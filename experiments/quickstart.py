"""Four tiny encoders on the docstrings of the packages installed here: minutes on two cores, no download.

Each is 2 layers, 128 wide, with an initial deviation of 1/√128: at the papers' 0.02 a model this small stays on the
unigram plateau for millions of tokens.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW

VOCABULARY = 2048
SMALL = dict(
    vocab=VOCABULARY, hidden=128, layers=2, heads=2, intermediate=512, positions=64,
    deviation=128**-0.5, dropout=0.0, attention_dropout=0.0, unroll=True,
)  # fmt: skip


def member(name, model, objective, form, kind, steps):
    return Experiment(
        name=f"quickstart-{name}",
        model=model,
        objective=objective,
        data=Data(vocabulary=Vocabulary(kind=kind, size=VOCABULARY, sample=4_000_000), heldout=0.1),
        optimizer=AdamW(rate=2e-3, warmup=100, correction=True),
        phases=(Phase(until=steps, length=64, batch=32, format=form),),
        cadence=Cadence(log=50, evaluate=400, save=400, keep=1, heldout=60),
    )


experiments = [
    member(
        "bert",
        replace(bert.TINY, **SMALL),
        Joint(Masking(copies=10), NextSentence()),
        SegmentPairs("random"),
        "wordpiece",
        steps=2600,  # next-sentence prediction moves last
    ),
    member(
        "roberta",
        replace(roberta.of(bert.TINY), **SMALL),
        Joint(Masking(copies=None)),
        FullSentences(),
        "bpe",
        steps=1000,
    ),
    member(
        "albert",
        replace(albert.BASE, embedding=64, **SMALL),
        Joint(Masking(copies=40, unit="word", ngrams=3), SentenceOrder()),
        SegmentPairs("swapped"),
        "unigram",
        steps=1600,
    ),
    member(
        "electra",
        replace(electra.of(bert.TINY), **SMALL),
        ReplacedTokens(width=1 / 2),
        ElectraPairs(),
        "wordpiece",
        steps=900,
    ),
]
