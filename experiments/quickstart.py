"""Four tiny encoders on the docstrings of the packages installed here: minutes on two cores, no download.

    python launch.py train quickstart --jobs 2

Cost: 4 min 45 s for all four, with the preparation of three stores, on two cores (Intel Xeon).
Score: accuracy at [MASK] 20.8 % (BERT), 20.3 % (RoBERTa), 30.5 % (the generator of ELECTRA) and 20.6 % (ALBERT).

Each has 2 layers of 128, initialised with a standard deviation of 1/√128: at the papers' 0.02 so small a model stays
on the unigram plateau for millions of tokens. Rows have 16 tokens at first, as BERT's have 128 before 512: attention
over fewer tokens finds the neighbours of a mask sooner. ELECTRA has rotary positions, which show where neighbours are
from the start, so that its discriminator learns something in these minutes. The others have the papers' learned ones,
and can be exported.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.measures.fixed_corruption import FixedCorruption
from encoders.model.rotary import RotaryFeatures
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW

VOCAB_SIZE = 1024
SMALL_SIZES = dict(
    vocab_size=VOCAB_SIZE, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=256, max_positions=64,
    init_std=128**-0.5, hidden_dropout=0.0, attention_dropout=0.0, unroll_layers=True,
)  # fmt: skip


def build_quickstart_run(name, model, objective, row_format, tokenizer_kind, steps):
    return Experiment(
        name=f"quickstart-{name}",
        model=model,
        objective=objective,
        data=PretrainingData(
            tokenizer=TokenizerSpec(kind=tokenizer_kind, vocab_size=VOCAB_SIZE, train_chars=4_000_000),
            heldout_fraction=0.1,
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, bias_correction=True),
        phases=(
            Phase(until_step=steps * 11 // 20, seq_length=16, batch_size=32, format=row_format),
            Phase(until_step=steps, seq_length=32, batch_size=16, format=row_format),
        ),
        intervals=Intervals(log_every=50, eval_every=1000, save_every=1000, keep_checkpoints=1, eval_batches=100),
    )


measures = [FixedCorruption()]
experiments = [  # of two processes one trains BERT and ELECTRA, the other RoBERTa and ALBERT, which take as long
    build_quickstart_run(
        "bert",
        replace(bert.TINY, **SMALL_SIZES),
        MaskedLM(Masking(dupe_factor=10), NextSentencePrediction()),
        SegmentPairs("random"),
        "wordpiece",
        steps=2800,
    ),
    build_quickstart_run(
        "roberta",
        replace(roberta.to_roberta_config(bert.TINY), **SMALL_SIZES),
        MaskedLM(Masking(dupe_factor=None)),
        FullSentences(),
        "bpe",
        steps=3800,
    ),
    build_quickstart_run(
        "electra",
        replace(electra.to_electra_config(bert.TINY), row_features=RotaryFeatures, **SMALL_SIZES),
        ReplacedTokenDetection(generator_width=1.0, tie="tokens", rtd_weight=10.0),
        ElectraPairs(),
        "wordpiece",
        steps=2150,
    ),
    build_quickstart_run(
        "albert",
        replace(albert.BASE, embedding_size=64, **SMALL_SIZES),
        MaskedLM(Masking(dupe_factor=40, unit="word", max_ngram=3), SentenceOrderPrediction()),
        SegmentPairs("swapped"),
        "unigram",
        steps=4300,
    ),
]
