"""The benchmark's work done with torch and transformers, as fast as a user who knows them would have it.

Neither is imported before `build` is called; if one is not installed, `build` raises ImportError.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from encoders.bench.rounds import choose_num_repeats

PAIR_LABELS = {"bert": "next_sentence_label", "albert": "sentence_order_label"}  # the pair's label in ...ForPreTraining
EQUIVALENT_ACTIVATIONS = {
    "gelu_new": "gelu_pytorch_tanh"
}  # the same function, as one kernel instead of a chain of eight
LEARNING_RATE = 5e-4
RTD_WEIGHT = 50.0  # of the discriminator's loss


def build_torch_work(spec: dict) -> tuple[Callable, dict]:
    """One unit of work to be timed (it returns the loss, or a checksum for inference), and facts about it."""
    if spec["task"] == "product":
        return build_torch_matmul(spec)
    kinds = ("task", "device", "dtype")
    engines = ("eager", "compile") + ("onnxruntime",) * ([spec[kind] for kind in kinds] == ["infer", "cpu", "float32"])
    if spec["engine"] not in engines:
        given = ", ".join(spec[kind] for kind in kinds)
        raise ValueError(f"engine={spec['engine']!r} does not do {given}; {', '.join(engines)} do")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        configure_torch(spec)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        run, facts = (build_torch_training if spec["task"] == "train" else build_torch_inference)(
            spec, load_torch_batches(spec)
        )
        if spec["engine"] == "compile":
            began = time.perf_counter()
            for _ in range(3):
                run()
            facts["compile_seconds"] = time.perf_counter() - began
    packages = ("torch", "transformers") + ("onnxruntime",) * (spec["engine"] == "onnxruntime")
    return run, facts | {"device": spec["device"], "versions": {name: version(name) for name in packages}}


def configure_torch(spec: dict) -> None:
    import torch

    torch.set_num_threads(spec["threads"])
    if spec["fast"]:
        # float32 goes to oneDNN instead of MKL, where the CPU has AVX-512 with bfloat16; elsewhere nothing changes.
        torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)


def build_torch_matmul(spec: dict) -> tuple[Callable, dict]:
    """Products of matrices again and again: torch's ceiling."""
    import torch

    configure_torch(spec)
    n, d, f = spec["sizes"]
    options = {"dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    a, b = torch.full((n, d), 0.5, **options), torch.full((d, f), 0.5, **options)
    times = choose_num_repeats(lambda: float((a @ b)[0, 0]))

    def repeat_matmul():
        for _ in range(times):
            c = a @ b
        return c[0, 0]

    facts = {"flops": 2.0 * n * d * f * times, "device": spec["device"], "versions": {"torch": version("torch")}}
    return repeat_matmul, facts


def load_torch_batches(spec: dict) -> list[dict]:
    """The stored batches on the device; their mask is an input only where there is padding, as it takes time."""
    import torch

    with np.load(spec["inputs"]) as stored:
        arrays = {name: torch.from_numpy(stored[name]).long().to(spec["device"]) for name in stored.files}
    padded = not arrays["mask"].all()

    def make_batch(i: int) -> dict:
        one = {name: array[i] for name, array in arrays.items()}
        inputs = {"token_type_ids": one["types"]} | ({"attention_mask": one["mask"]} if padded else {})
        return one | {"inputs": inputs, "picked": (one["labels"] != -100).nonzero(as_tuple=True)}

    return [make_batch(i) for i in range(len(arrays["ids"]))]


def build_torch_model(spec: dict, auto_class, **model_options):
    """A freshly initialised model of theirs."""
    from transformers import AutoConfig

    activation = spec["config"]["hidden_act"]
    config = AutoConfig.for_model(
        spec["family"], **spec["config"] | {"hidden_act": EQUIVALENT_ACTIVATIONS.get(activation, activation)}
    )
    model = auto_class.from_config(config, attn_implementation=choose_torch_attention(spec), **model_options)
    return model.to(spec["device"]).train(spec["task"] == "train")


def compile_torch_model(spec: dict, model) -> Callable:
    import torch

    return torch.compile(model) if spec["engine"] == "compile" else model


def choose_torch_attention(spec: dict) -> str:
    """The faster of their implementations: on a CPU torch's own knows no dropout, and exports with more nodes."""
    chain = spec["device"] == "cpu" and (get_attention_dropout(spec) > 0 or spec["engine"] == "onnxruntime")
    return "eager" if chain else "sdpa"


def get_attention_dropout(spec: dict) -> float:
    return spec["config"]["attention_probs_dropout_prob"] if spec["task"] == "train" else 0.0


def describe_torch_model(spec: dict, parameters: list, batch: dict) -> dict:
    """What the model has: its attention, with the kernel that torch chooses for it, and its number of parameters."""
    import torch

    kind, train = choose_torch_attention(spec), spec["task"] == "train"
    if kind == "sdpa":
        (rows, length), heads = batch["ids"].shape, spec["config"]["num_attention_heads"]
        shape, at = (rows, heads, length, spec["config"]["hidden_size"] // heads), {"device": spec["device"]}
        query = torch.empty(shape, dtype=getattr(torch, spec["dtype"]), requires_grad=train, **at)
        mask = batch["inputs"].get("attention_mask")
        mask = mask if mask is None else mask[:, None, None].bool().expand(-1, -1, length, -1)
        chosen = torch._fused_sdp_choice(query, query, query, mask, get_attention_dropout(spec))
        kind = f"sdpa, {torch.nn.attention.SDPBackend(chosen).name.lower()}"
    return {"attention": kind, "parameters": sum(each.numel() for each in parameters)}


def build_torch_training(spec: dict, batches: list[dict]) -> tuple[Callable, dict]:
    """A step: forward, backward, the global norm clipped to 1, AdamW."""
    import torch

    models, loss_of = (build_torch_electra if spec["family"] == "electra" else build_torch_masked_lm)(spec)
    parameters = list(dict.fromkeys(each for model in models for each in model.parameters()))
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, eps=1e-6, weight_decay=0.01, fused=True)
    batch = itertools.cycle(batches)

    def run_train_step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(spec["device"], torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            loss = loss_of(next(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return run_train_step, describe_torch_model(spec, parameters, batches[0]) | {"optimizer": "AdamW(fused=True)"}


def build_torch_masked_lm(spec: dict) -> tuple[list, Callable]:
    """Their model with its own loss: masked tokens, and the pair of sentences where there is one."""
    import transformers

    pair = PAIR_LABELS[spec["family"]] if spec["pair"] else None
    model = build_torch_model(
        spec, getattr(transformers, "AutoModelForPreTraining" if pair else "AutoModelForMaskedLM")
    )
    call = compile_torch_model(spec, model)

    def compute_loss(batch: dict):
        labels = {"labels": batch["labels"]} | ({pair: batch["pair"]} if pair else {})
        return call(input_ids=batch["ids"], **batch["inputs"], **labels).loss

    return [model], compute_loss


def build_torch_electra(spec: dict) -> tuple[list, Callable]:
    """ELECTRA's two models on one table of embeddings, as far as their sizes let them share it."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    discriminator = build_torch_model(spec, AutoModelForPreTraining)
    generator = build_torch_model(spec | {"config": spec["generator"]}, AutoModelForMaskedLM)
    if generator.config.embedding_size == discriminator.config.embedding_size:
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.tie_weights()
    generate, judge = compile_torch_model(spec, generator), compile_torch_model(spec, discriminator)

    def compute_loss(batch: dict):
        rows, columns = batch["picked"]
        logits = generate(input_ids=batch["ids"], **batch["inputs"]).logits[rows, columns].float()
        with torch.no_grad():
            samples = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel's noise
            ids = batch["original"].index_put((rows, columns), samples)
            replaced = (ids != batch["original"]).float()
        verdict = judge(input_ids=ids, **batch["inputs"]).logits.float()
        real = batch["mask"].float()
        judged = functional.binary_cross_entropy_with_logits(verdict, replaced, weight=real, reduction="sum")
        return functional.cross_entropy(logits, batch["labels"][rows, columns]) + RTD_WEIGHT * judged / real.sum()

    return [generator, discriminator], compute_loss


def build_torch_inference(spec: dict, batches: list[dict]) -> tuple[Callable, dict]:
    """The encoder alone; the checksum is the sum of the first feature of its hidden states."""
    import torch
    from transformers import AutoModel

    model = build_torch_model(spec, AutoModel, **({} if spec["family"] == "electra" else {"add_pooling_layer": False}))
    model = model.to(getattr(torch, spec["dtype"]))
    facts = describe_torch_model(spec, list(model.parameters()), batches[0])
    if spec["engine"] == "onnxruntime":
        return build_onnxruntime_work(spec, model, batches), facts
    call, batch = compile_torch_model(spec, model), itertools.cycle(batches)

    @torch.inference_mode()
    def run_encoder():
        one = next(batch)
        return call(input_ids=one["ids"], **one["inputs"]).last_hidden_state[..., 0].float().sum()

    return run_encoder, facts


def build_onnxruntime_work(spec: dict, model, batches: list[dict]) -> Callable[[], float]:
    """The encoder as onnxruntime runs it."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.log_severity_level = 3
    inputs = [{"input_ids": one["ids"], **one["inputs"]} for one in batches]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        names = {"input_names": list(inputs[0]), "output_names": ["hidden"]}
        torch.onnx.export(model, (), path, kwargs=inputs[0], **names, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch = itertools.cycle([{name: x.numpy() for name, x in one.items()} for one in inputs])

    def run_session():
        (hidden,) = session.run(["hidden"], next(batch))
        return float(hidden[..., 0].sum())

    return run_session
