"""The gain from pre-training at the smallest scale: each family at 2 layers of 128, pre-trained or from scratch.

    python launch.py train pays --with corpus=wiki-1.txt.xz root=GLUE

Score: no gain at 15 M tokens. BERT reaches 0.748 on SST-2 after pre-training and 0.749 from scratch (medians of three
seeds on two shared cores, AMD EPYC); all are in experiments/README.md, "Fine-tuning". Time: not measured here.

Every family is pre-trained on 15 M tokens of the corpus. It is then fine-tuned on 10,000 rows of SST-2 and on MRPC, and
so is the same model from scratch, with three seeds each. The pre-training runs are part of the same command.
"""

from dataclasses import replace

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, roberta
from encoders.finetuning.grids import Recipe, build_finetuning_grid
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.sweeps.small_scale import SMALL_SIZES
from encoders.tasks.glue import GLUE_TASKS, NUM_GLUE_TRAIN_ROWS
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW

FAMILIES = {
    "bert": (
        bert.TINY,
        MaskedLM(Masking(dupe_factor=10), NextSentencePrediction()),
        SegmentPairs("random"),
        "wordpiece",
    ),
    "roberta": (roberta.to_roberta_config(bert.TINY), MaskedLM(Masking(dupe_factor=None)), FullSentences(), "bpe"),
    "albert": (
        replace(albert.BASE, embedding_size=64),
        MaskedLM(Masking(dupe_factor=40, unit="word", max_ngram=3), SentenceOrderPrediction()),
        SegmentPairs("swapped"),
        "unigram",
    ),
    "electra": (
        electra.to_electra_config(bert.TINY),
        ReplacedTokenDetection(generator_width=1 / 2),
        ElectraPairs(),
        "wordpiece",
    ),
}
STEPS, BATCH_SIZE, SEQ_LENGTH = 3662, 64, 64  # 15 M tokens
RECIPE = Recipe(3e-4, 32, num_epochs=4, max_seq_length=64, optimizer=AdamW(1.0, 0, bias_correction=True))


def experiments(corpus: tuple[str, ...], root: str = "glue", runs: str = "runs", seeds: int = 3):
    experiments = []
    for family, (base, objective, row_format, tokenizer_kind) in FAMILIES.items():
        config = replace(base, **SMALL_SIZES)
        pretrain_run = f"{runs}/pays-{family}"
        tokenizer = TokenizerSpec(kind=tokenizer_kind, vocab_size=SMALL_SIZES["vocab_size"])
        experiments.append(
            Experiment(
                name=f"pays-{family}",
                model=config,
                objective=objective,
                data=PretrainingData(corpus, tokenizer),
                optimizer=AdamW(learning_rate=2e-3, warmup_steps=200, bias_correction=True),
                phases=(Phase(STEPS, SEQ_LENGTH, BATCH_SIZE, row_format),),
                intervals=Intervals(log_every=100, eval_every=1000, save_every=1000, keep_checkpoints=1),
            )
        )
        for task in ("SST-2", "MRPC"):
            for suffix, init_from in (("after", pretrain_run), ("scratch", None)):
                experiments += build_finetuning_grid(
                    f"pays-{family}-{task}-{suffix}",
                    GLUE_TASKS[task],
                    f"{root}/{task}",
                    [RECIPE],
                    NUM_GLUE_TRAIN_ROWS[task],
                    init_from=init_from,
                    config=config,
                    tokenizer_path=f"{pretrain_run}/tokenizer.json",
                    max_train_rows=10_000,
                    num_seeds=seeds,
                )
    return experiments
