"""The four encoders at about mini size (4 layers, 256 wide) on your own text: most of an hour each on a core.

    python launch.py train experiments/mini.py --set data.corpus=TEXT.txt.xz

A vocabulary of 8,000 of each family's own kind. Nine tenths of the steps see rows of 32 tokens, the last tenth rows of
128, as BERT's 128 and 512: long rows alone stay on the unigram plateau for longer than so short a run lasts. The rate
and the initial deviation are for so small a model on so few tokens; the papers' values are in the file of each family.
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

VOCABULARY = 8000
SIZE = dict(
    vocab=VOCABULARY, hidden=256, layers=4, heads=4, intermediate=1024, positions=128,
    deviation=0.04, dropout=0.0, attention_dropout=0.0, unroll=True,
)  # fmt: skip


def member(name, model, objective, form, kind, steps=5000):
    return Experiment(
        name=f"mini-{name}",
        model=model,
        objective=objective,
        data=Data(vocabulary=Vocabulary(kind=kind, size=VOCABULARY)),
        optimizer=AdamW(rate=7e-4, warmup=200, correction=True),
        phases=(
            Phase(until=steps * 9 // 10, length=32, batch=32, format=form),
            Phase(until=steps, length=128, batch=16, format=form),
        ),
        cadence=Cadence(log=100, evaluate=500, save=500, heldout=120),
    )


experiments = [
    member(
        "bert",
        replace(bert.MINI, **SIZE),
        Joint(Masking(copies=10), NextSentence()),
        SegmentPairs("random"),
        "wordpiece",
    ),
    member(
        "roberta",
        replace(roberta.of(bert.MINI), **SIZE),
        Joint(Masking(copies=None)),
        FullSentences(),
        "bpe",
    ),
    member(
        "albert",
        replace(albert.BASE, embedding=128, **SIZE),
        Joint(Masking(copies=40, unit="word", ngrams=3), SentenceOrder()),
        SegmentPairs("swapped"),
        "unigram",
    ),
    member(
        "electra",
        replace(electra.of(bert.MINI), embedding=128, **SIZE),
        ReplacedTokens(width=1 / 2),
        ElectraPairs(),
        "wordpiece",
        steps=3500,  # two networks: about the time of the others
    ),
]
