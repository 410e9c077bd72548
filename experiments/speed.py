"""What `launch.py bench` measures by default: one step of 8 x 128 tokens, or 8 x 512 of packed sentence pairs.

    python launch.py bench peers --only bert-base-8x128
    python launch.py bench peers --only "*-packed" --set data.corpus=TEXTS

With `--device gpu` see `speed_gpu`.
"""

from encoders.data.formats import SegmentPairs
from encoders.data.packing import Packed
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.text.tokenization import Vocabulary
from encoders.training.optimizer import AdamW

NSP = Joint(Masking(copies=10), NextSentence())
SOP = Joint(Masking(copies=40), SentenceOrder())
PAIRS, SWAPPED = SegmentPairs("random"), SegmentPairs("swapped")


def speed(name, model, objective, form, rows=8, length=128):
    return Experiment(
        name=name,
        model=model,
        objective=objective,
        data=Data(vocabulary=Vocabulary(size=model.vocab)),
        optimizer=AdamW(rate=1e-4, warmup=100),
        phases=(Phase(until=1000, length=length, batch=rows, format=form),),
    )


experiments = [
    speed("bert-base-8x128", bert.BASE, NSP, PAIRS),
    speed("bert-small-8x128", bert.SMALL, NSP, PAIRS),
    speed("albert-base-8x128", albert.BASE, SOP, SWAPPED),
    speed("electra-pair-8x128", electra.of(bert.SMALL), ReplacedTokens(width=1 / 4), PAIRS),
    speed("bert-large-8x128", bert.LARGE, NSP, PAIRS),
    speed("bert-small-packed", bert.SMALL, SOP, Packed(SWAPPED), length=512),
    speed("bert-base-packed", bert.BASE, SOP, Packed(SWAPPED), length=512),
]
