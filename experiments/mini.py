"""Pre-training of the four families at about mini size (4 layers of 256) on your own text.

    python launch.py train mini --set data.corpus=TEXT.txt.xz

Cost: 45 to 57 minutes a family for 3.9 to 5.6 M tokens, on one core each of a virtual machine (AMD EPYC).
Score on 98 MB of Wikipedia, accuracy at [MASK] in rows of 32: BERT 7.7 %, RoBERTa 16.9 %, ALBERT 7.9 %, the generator
of ELECTRA 12.5 %. The losses and the fill-ins are in experiments/README.md, "Mini size on Wikipedia text".

Each family has a vocabulary of 8,000 of its own kind. Nine tenths of the steps see rows of 32 tokens, the last tenth
rows of 128, as BERT sees 128 and 512: in so short a run, long rows alone do not leave the unigram plateau. Learning
rate and initialisation suit so small a model; the papers' values are in the file of each family.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW

VOCAB_SIZE = 8000
MINI_SIZES = dict(
    vocab_size=VOCAB_SIZE, hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, max_positions=128,
    init_std=0.04, hidden_dropout=0.0, attention_dropout=0.0, unroll_layers=True,
)  # fmt: skip


def build_mini_run(name, model, objective, row_format, tokenizer_kind, steps=5000):
    return Experiment(
        name=f"mini-{name}",
        model=model,
        objective=objective,
        data=PretrainingData(tokenizer=TokenizerSpec(kind=tokenizer_kind, vocab_size=VOCAB_SIZE)),
        optimizer=AdamW(learning_rate=7e-4, warmup_steps=200, bias_correction=True),
        phases=(
            Phase(until_step=steps * 9 // 10, seq_length=32, batch_size=32, format=row_format),
            Phase(until_step=steps, seq_length=128, batch_size=16, format=row_format),
        ),
        intervals=Intervals(log_every=100, eval_every=500, save_every=500, eval_batches=120),
    )


experiments = [
    build_mini_run(
        "bert",
        replace(bert.MINI, **MINI_SIZES),
        MaskedLM(Masking(dupe_factor=10), NextSentencePrediction()),
        SegmentPairs("random"),
        "wordpiece",
    ),
    build_mini_run(
        "roberta",
        replace(roberta.to_roberta_config(bert.MINI), **MINI_SIZES),
        MaskedLM(Masking(dupe_factor=None)),
        FullSentences(),
        "bpe",
    ),
    build_mini_run(
        "albert",
        replace(albert.BASE, embedding_size=128, **MINI_SIZES),
        MaskedLM(Masking(dupe_factor=40, unit="word", max_ngram=3), SentenceOrderPrediction()),
        SegmentPairs("swapped"),
        "unigram",
    ),
    build_mini_run(
        "electra",
        replace(electra.to_electra_config(bert.MINI), embedding_size=128, **MINI_SIZES),
        ReplacedTokenDetection(generator_width=1 / 2),
        ElectraPairs(),
        "wordpiece",
        steps=3500,  # for about the time of the others, with two networks
    ),
]
