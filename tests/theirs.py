"""Fine-tuning by transformers on torch, with the data, steps and rates of a run of ours, to compare scores with.

    python -m tests.theirs runs/minilm-RTE-rate5e-05-seed0 published/minilm --seeds 3 --device cpu

The first is a finished run of `experiments/glue.py`, the second the folder it was imported from. Rows, batch, updates,
rate, warm-up, decay, clipping and bias correction are the run's; dropout and the head are those of the class. Batches
are padded to their longest row and drawn at random; ours hold rows of like length, unless `cuts` is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from encoders.data.row_files import RowReader
from encoders.run.run import Run


def rows_of(experiment, split: str) -> tuple[list, np.ndarray]:
    rows = list(experiment.data.task.read_examples(experiment.data.root, split, RowReader()))
    return [row.texts for row in rows], np.array([row.target for row in rows])


def fine_tuned(experiment, folder: Path, seed: int, device: str) -> dict[str, float]:
    """The scores, on the development rows, of one model after all steps on `device`, such as "cpu" or "cuda"."""
    import torch
    import transformers

    torch.manual_seed(seed)
    objective, optimizer, (phase,) = experiment.objective, experiment.optimizer, experiment.phases
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    labels = len(objective.labels)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels).to(device)
    groups = [
        {"params": [p for n, p in model.named_parameters() if plain(n)], "weight_decay": 0.0},
        {"params": [p for n, p in model.named_parameters() if not plain(n)], "weight_decay": optimizer.weight_decay},
    ]
    adam = torch.optim.AdamW(groups, lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.eps)
    rate = lambda t: float(optimizer.compute_learning_rate(t, experiment.num_steps)) / optimizer.learning_rate
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    texts, targets = rows_of(experiment, "train")

    def encoded(some):
        columns = [list(column) for column in zip(*some, strict=True)]
        rows = tokenizer(*columns, truncation=True, max_length=phase.seq_length, padding=True, return_tensors="pt")
        return rows.to(device)

    order, rng = [], np.random.default_rng(seed)
    model.train()
    for _ in range(experiment.num_steps):
        while len(order) < phase.batch_size:
            order += rng.permutation(len(texts)).tolist()
        chosen, order = order[: phase.batch_size], order[phase.batch_size :]
        said = model(**encoded([texts[i] for i in chosen])).logits
        wanted = torch.tensor(targets[chosen], device=device)
        loss = torch.nn.functional.cross_entropy(said, wanted) if labels > 1 else ((said[:, 0] - wanted) ** 2).mean()
        loss.backward()
        if optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adam.step(), schedule.step(), adam.zero_grad()
    model.eval()
    texts, targets = rows_of(experiment, "dev")
    with torch.no_grad():
        parts = [model(**encoded(texts[i : i + 64])).logits.cpu().numpy() for i in range(0, len(texts), 64)]
    numbers = np.concatenate(parts)
    numbers = numbers.argmax(-1) if labels > 1 else numbers[:, 0]
    return {name: objective.score_functions[name](numbers, targets) for name in objective.score_names}


def plain(name: str) -> bool:
    """Whether weight decay leaves the parameter out."""
    return "LayerNorm" in name or name.endswith("bias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    experiment = Run.open(options.run).experiment
    if not experiment.optimizer.bias_correction:
        raise SystemExit("torch's AdamW corrects its bias; take a run with optimizer.bias_correction=true")
    found = []
    for seed in range(options.seeds):
        found.append(fine_tuned(experiment, options.folder, seed, options.device))
        print(json.dumps({"seed": seed} | found[-1]), flush=True)
    for name in found[0]:
        each = sorted(scores[name] for scores in found)
        print(f"{name}: median {statistics.median(each):.4f}, {each[0]:.4f} to {each[-1]:.4f}")


if __name__ == "__main__":
    main()
