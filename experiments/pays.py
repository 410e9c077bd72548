"""Does pre-training pay at the smallest scale? Each family at 2 layers of 128, with it and without it, on two tasks.

    python launch.py train pays --with corpus=wiki-1.txt.xz root=GLUE

Every family is pre-trained on 15 M tokens of the corpus, then fine-tuned on 10,000 rows of SST-2 and on MRPC, and so is
the same model from scratch, with three seeds each. The fine-tuning begins with runs of this same command.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.finetuning.grids import Recipe, grid
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.sweeps.paper_table import SIZE
from encoders.tasks.glue import ROWS, TASKS
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW

FAMILIES = {
    "bert": (bert.TINY, Joint(Masking(copies=10), NextSentence()), SegmentPairs("random"), "wordpiece"),
    "roberta": (roberta.of(bert.TINY), Joint(Masking(copies=None)), FullSentences(), "bpe"),
    "albert": (
        replace(albert.BASE, embedding=64),
        Joint(Masking(copies=40, unit="word", ngrams=3), SentenceOrder()),
        SegmentPairs("swapped"),
        "unigram",
    ),
    "electra": (electra.of(bert.TINY), ReplacedTokens(width=1 / 2), ElectraPairs(), "wordpiece"),
}
STEPS, ROWS_A_STEP, LENGTH = 3662, 64, 64  # 15 M tokens
RECIPE = Recipe(3e-4, 32, epochs=4, length=64, optimizer=AdamW(1.0, 0, correction=True))


def experiments(corpus: tuple[str, ...], root: str = "glue", runs: str = "runs", seeds: int = 3):
    members = []
    for name, (base, objective, form, kind) in FAMILIES.items():
        model, run = replace(base, **SIZE), f"{runs}/pays-{name}"
        members.append(
            Experiment(
                name=f"pays-{name}",
                model=model,
                objective=objective,
                data=Data(corpus, Vocabulary(kind=kind, size=SIZE["vocab"])),
                optimizer=AdamW(rate=2e-3, warmup=200, correction=True),
                phases=(Phase(STEPS, LENGTH, ROWS_A_STEP, form),),
                cadence=Cadence(log=100, evaluate=1000, save=1000, keep=1),
            )
        )
        for task in ("SST-2", "MRPC"):
            for begun, start in (("after", run), ("scratch", None)):
                given = {"model": model, "vocabulary": f"{run}/tokenizer.json", "limit": 10_000, "seeds": seeds}
                where = f"pays-{name}-{task}-{begun}"
                members += grid(where, TASKS[task], f"{root}/{task}", [RECIPE], ROWS[task], start=start, **given)
    return members
