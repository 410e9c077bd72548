"""The training steps that `launch.py price` compares on TPUs: bfloat16, 16,384 tokens for each of four chips.

    python launch.py price speed_tpu --on v5e:2x2,v6e:2x2,v5p:2x2x1
    python launch.py price speed_tpu --only bert-base-128 --on v5e:2x2 --set model.remat=full

The models are those of `speed_gpu`, with the papers' dropout. Cost: the compiler takes minutes for each, on one core;
no TPU is needed. Speed on TPUs: not measured here.
"""

from dataclasses import replace

from encoders.library.speed_gpu import CASES

from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

TOKENS = 4 * 16_384

experiments = [
    Experiment(
        name=name,
        model=replace(model, dtype="bfloat16"),
        objective=objective,
        data=PretrainingData(tokenizer=TokenizerSpec("bpe", vocab_size=model.vocab_size)),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=100),
        phases=(Phase(until_step=1000, seq_length=length, batch_size=TOKENS // length, format=row_format),),
    )
    for name, (model, objective, row_format, _, length) in CASES.items()
]
