"""Pre-training of ESM-2 (Lin et al., 2023, supplement A.1): masked amino acids in rows of up to 1,024 tokens.

    python launch.py train esm --only esm2-tiny --set data.corpus=PROTEINS.fasta
    python launch.py show esm --only esm2-35m
    python launch.py train esm --only esm2-35m --set data.corpus=UNIREF50.fasta

The corpus is FASTA, or text with a sequence a line. A sequence is an example, `<cls>` before and `<eos>` behind it, and
examples share rows. `esm_vocab.txt` is the published alphabet, so a run exports with the ids of EsmTokenizer.

2 M tokens a step, 500,000 steps and the lengths are the paper's. From memory, not read again: the peak rate, its decay
to a tenth within 90 % of the steps, 2,000 steps of warm-up, Adam's betas, epsilon and weight decay, and no clipping.
Cost and score: not measured here; `show` prints parameters, FLOPs and memory. A run sees 1 T tokens: about 3e20 FLOPs
for 35M, 5e21 for 650M. `esm2-tiny`, 2,000 steps of 32 rows of 128, is for one core.

Differences that are known: UniRef50 sequences are read as they are, where the paper draws a UniRef90 member of each
cluster; a sequence of more than 1,022 amino acids is cut into pieces, where the paper draws one crop.

The runs named electra have ELECTRA's objective on the same encoder, which the paper does not: a generator of a quarter
of the width (half in the tiny run) replaces amino acids, and the encoder finds them.
"""

from dataclasses import replace
from pathlib import Path

from encoders.data.formats import FullSentences
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import esm
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW
from encoders.training.schedules import PiecewiseSchedule, SchedulePiece

ALPHABET = TokenizerSpec(
    "character",
    vocab_size=33,
    path=str(Path(__file__).with_name("esm_vocab.txt")),
    special_tokens=("cls=<cls>", "pad=<pad>", "sep=<eos>", "unk=<unk>", "mask=<mask>"),
)
ROWS = PackedFormat(FullSentences(within_document=True))


def build_run(name, model, until_step, batch_size, seq_length, learning_rate=4e-4, warmup_steps=2000) -> Experiment:
    decay_end = until_step * 9 // 10
    pieces = (
        SchedulePiece(warmup_steps),
        SchedulePiece(decay_end, end=0.1),
        SchedulePiece(until_step, start=0.1, end=0.1),
    )
    return Experiment(
        name=name,
        model=model,
        objective=MaskedLM(Masking(dupe_factor=None)),
        data=PretrainingData(
            corpus=("uniref50.fasta",),
            tokenizer=ALPHABET,
            sentence_splitting="lines",
            document_per_line=True,
        ),
        optimizer=AdamW(
            learning_rate,
            warmup_steps,
            betas=(0.9, 0.98),
            eps=1e-8,
            bias_correction=True,
            clip_norm=None,
            schedule=PiecewiseSchedule(pieces),
        ),
        phases=(Phase(until_step, seq_length, batch_size, ROWS),),
    )


def with_electra(run: Experiment, width: float) -> Experiment:
    return replace(run, name=f"{run.name}-electra", objective=ReplacedTokenDetection(generator_width=width))


RUNS = {name: build_run(name, model, 500_000, 2048, 1024) for name, model in esm.SIZES.items()}
TINY = build_run("esm2-tiny", esm.make_esm_config(64, 4, 4), 2000, 32, 128, learning_rate=2e-3, warmup_steps=100)

experiments = [*RUNS.values(), TINY, with_electra(RUNS["esm2-150m"], 1 / 4), with_electra(TINY, 1 / 2)]
