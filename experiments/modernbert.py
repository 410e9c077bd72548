"""Pre-training of ModernBERT (Warner et al., 2024, §2.2 and appendix A): 1,024 tokens, then an extension to 8,192.

    python launch.py show modernbert --only modernbert-base-1024
    python launch.py train modernbert --only modernbert-base-1024
    python launch.py train modernbert --only modernbert-base-8192

The second run of a size starts from the first: its rotary base in global layers is 160,000 instead of 10,000, and it
has more positions. Rates, tokens and batches are those of the paper: 1.719 T tokens at 1,024, 250 B and 50 B at 8,192.
Masked tokens are 30 % in training and 15 % in evaluation. Cost and score: not measured here; `show` prints parameters,
FLOPs and memory.

Differences that are known: the text is Wikipedia, since the paper's is not released; the vocabulary is trained here
unless `data.tokenizer.path` names the published tokenizer.json; ModernBERT-large is tiled from the end of the base's
first run; the annealing of the last 50 B tokens has the same text; and the restart of the large model at 5e-5 after
900 B tokens is a piece of its schedule.
"""

from dataclasses import replace

from encoders.data.formats import FullSentences
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import BatchRamp, Phase
from encoders.experiment import Experiment
from encoders.families import modernbert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import StableAdamW
from encoders.training.schedules import PiecewiseSchedule, SchedulePiece

ROWS = PackedFormat(FullSentences())


def build_run(name, model, optimizer, phase, **fields) -> Experiment:
    return Experiment(
        name=name,
        model=replace(model, attention_out_dropout=0.1),
        objective=MaskedLM(Masking(dupe_factor=None)),
        data=PretrainingData(
            corpus=("tfds:wikipedia/20230601.en",),
            tokenizer=TokenizerSpec("bpe", vocab_size=model.vocab_size, train_chars=200_000_000),
        ),
        optimizer=optimizer,
        phases=(phase,),
        **fields,
    )


def count_steps(tokens: float, batch_size: int, seq_length: int) -> int:
    return round(tokens / (batch_size * seq_length))


def build_size(
    size: str, model, rates, batch, ramp_tokens, warmup_tokens, long_rate, long_batch, **fields
) -> list[Experiment]:
    """Return the two runs of a size; `rates` are those of the first 900 B tokens of the first run, and of the rest."""
    steps, long_steps = count_steps(1.719e12, batch, 1024), count_steps(300e9, long_batch, 8192)
    ramp = BatchRamp(start=batch // 6, unit=batch // 6, num_steps=count_steps(ramp_tokens, batch // 2, 1024))
    first, rest = rates
    schedule = PiecewiseSchedule(
        (
            SchedulePiece(count_steps(900e9, batch, 1024)),
            SchedulePiece(steps, start=rest / first, end=rest / first),
        )
    )
    extension = PiecewiseSchedule(
        (
            SchedulePiece(count_steps(250e9, long_batch, 8192)),
            SchedulePiece(long_steps, end=0.0, decay="one_minus_sqrt"),
        )
    )
    short = replace(model, rope_theta=10_000.0, max_positions=1024)
    warmup = count_steps(warmup_tokens, batch, 1024)
    name = f"modernbert-{size}-1024"
    return [
        build_run(
            name,
            short,
            StableAdamW(first, warmup, schedule=schedule),
            Phase(steps, 1024, batch, ROWS, mask_rate=0.3, batch_ramp=ramp),
            **fields,
        ),
        build_run(
            f"modernbert-{size}-8192",
            model,
            StableAdamW(long_rate, 0, schedule=extension),
            Phase(long_steps, 8192, long_batch, ROWS, mask_rate=0.3),
            init_from=f"runs/{name}",
        ),
    ]


TILED_FROM_BASE = dict(init_from="runs/modernbert-base-1024", init_by="tiling")

experiments = [
    *build_size("base", modernbert.BASE, (8e-4, 8e-4), 4608, 50e9, 3e9, 3e-4, 72),
    *build_size("large", modernbert.LARGE, (5e-4, 5e-5), 4928, 10e9, 2e9, 5e-5, 77, **TILED_FROM_BASE),
]
