"""Loss and gradients of a contrastive step on 1, 2, 4 and 8 devices and in 1 and 4 chunks, as JSON.

python -m tests.tasks.contrastive_devices
"""

import json

import jax
import numpy as np

from encoders.objectives.embedding_losses import InfoNCE
from encoders.tasks.contrastive import Contrastive
from encoders.training.sharding import Mesh, shard_batch
from encoders.training.step import compute_gradients, init_params
from tests.finetuning.tiny import MODEL
from tests.networks import make_vocab
from tests.tasks.text_rows import make_text_batch

NUM_DEVICES, NUM_CHUNKS = (1, 2, 4, 8), (1, 4)


def compute_flat_gradients(batch, module, params, grad_accum_steps):
    (loss, _), gradients = jax.jit(
        lambda params, batch: compute_gradients(params, batch, 0, 0, module=module, grad_accum_steps=grad_accum_steps)
    )(params, batch)
    return float(loss), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(gradients))])


def main() -> None:
    jax.config.update("jax_num_cpu_devices", max(NUM_DEVICES))
    module = Contrastive(InfoNCE(symmetric=True)).module(MODEL, make_vocab(MODEL.vocab_size))
    params, batch = init_params(0, module), make_text_batch(num_rows=32, num_texts=3)
    expected_loss, expected = compute_flat_gradients(batch, module, params, 1)
    differences = {}
    for num_devices in NUM_DEVICES:
        mesh = Mesh(data=num_devices).build(jax.devices()[:num_devices])
        replicated = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        for num_chunks in NUM_CHUNKS:
            loss, gradients = compute_flat_gradients(shard_batch(batch, mesh), module, replicated, num_chunks)
            difference = np.linalg.norm(gradients - expected) / np.linalg.norm(expected)
            differences[f"{num_devices} devices, {num_chunks} chunks"] = [abs(loss - expected_loss), difference]
    print(json.dumps({name: list(map(float, pair)) for name, pair in differences.items()}))


if __name__ == "__main__":
    main()
