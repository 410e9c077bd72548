"""Units of work of torch and transformers, as fast as an experienced user would set them up.

The libraries are imported by `build_torch_work`, which raises `ImportError` where one is not installed.
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
# The same function as one kernel, instead of a chain of eight.
EQUIVALENT_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}
LEARNING_RATE = 5e-4
RTD_WEIGHT = 50.0  # factor of the discriminator's loss


def build_torch_work(spec: dict) -> tuple[Callable, dict]:
    """Return one unit of work to time, which returns the loss or a checksum of inference, and facts about it.

    Raises `ValueError` for an engine that cannot do the work.
    """
    if spec["task"] == "product":
        return build_torch_matmul(spec)
    work = (spec["task"], spec["device"], spec["dtype"])
    engines = ["eager", "compile"]
    if work == ("infer", "cpu", "float32"):
        engines.append("onnxruntime")
    if spec["engine"] not in engines:
        raise ValueError(f"engine={spec['engine']!r} does not do {', '.join(work)}; {', '.join(engines)} do")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        configure_torch(spec)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        build = build_torch_training if spec["task"] == "train" else build_torch_inference
        run_unit, info = build(spec, load_torch_batches(spec))
        if spec["engine"] == "compile":
            start = time.perf_counter()
            for _ in range(3):
                run_unit()
            info["compile_seconds"] = time.perf_counter() - start
    packages = ["torch", "transformers"]
    if spec["engine"] == "onnxruntime":
        packages.append("onnxruntime")
    return run_unit, info | {"device": spec["device"], "versions": {name: version(name) for name in packages}}


def configure_torch(spec: dict) -> None:
    """Set the threads, precision and seed of torch."""
    import torch

    torch.set_num_threads(spec["threads"])
    if spec["fast"]:
        # On a CPU that has AVX-512 with bfloat16, float32 uses oneDNN instead of MKL; elsewhere nothing changes.
        torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)


def build_torch_matmul(spec: dict) -> tuple[Callable, dict]:
    """Return repeated matrix products, the fastest work that torch has."""
    import torch

    configure_torch(spec)
    n, d, f = spec["sizes"]
    options = {"dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    a, b = torch.full((n, d), 0.5, **options), torch.full((d, f), 0.5, **options)
    num_repeats = choose_num_repeats(lambda: float((a @ b)[0, 0]))

    def repeat_matmul():
        for _ in range(num_repeats):
            c = a @ b
        return c[0, 0]

    info = {"flops": 2.0 * n * d * f * num_repeats, "device": spec["device"], "versions": {"torch": version("torch")}}
    return repeat_matmul, info


def load_torch_batches(spec: dict) -> list[dict]:
    """Return the saved batches on the device; the mask, which costs time, is an input only where a batch has
    padding."""
    import torch

    with np.load(spec["inputs"]) as stored:
        arrays = {name: torch.from_numpy(stored[name]).long().to(spec["device"]) for name in stored.files}
    has_padding = not arrays["mask"].all()

    def make_batch(i: int) -> dict:
        fields = {name: array[i] for name, array in arrays.items()}
        inputs = {"token_type_ids": fields["types"]}
        if has_padding:
            inputs["attention_mask"] = fields["mask"]
        return fields | {"inputs": inputs, "masked_positions": (fields["labels"] != -100).nonzero(as_tuple=True)}

    return [make_batch(i) for i in range(len(arrays["ids"]))]


def build_torch_model(spec: dict, auto_class, **model_options):
    """Return a freshly initialised model of transformers on the device."""
    from transformers import AutoConfig

    activation = spec["config"]["hidden_act"]
    changes = {"hidden_act": EQUIVALENT_ACTIVATIONS.get(activation, activation)}
    config = AutoConfig.for_model(spec["family"], **spec["config"] | changes)
    model = auto_class.from_config(config, attn_implementation=choose_torch_attention(spec), **model_options)
    return model.to(spec["device"]).train(spec["task"] == "train")


def compile_torch_model(spec: dict, model) -> Callable:
    """Return the model, compiled where the engine is "compile"."""
    import torch

    return torch.compile(model) if spec["engine"] == "compile" else model


def choose_torch_attention(spec: dict) -> str:
    """Return the faster attention: on a CPU, sdpa lacks fused dropout and exports with more nodes."""
    is_eager = spec["device"] == "cpu" and (get_attention_dropout(spec) > 0 or spec["engine"] == "onnxruntime")
    return "eager" if is_eager else "sdpa"


def get_attention_dropout(spec: dict) -> float:
    return spec["config"]["attention_probs_dropout_prob"] if spec["task"] == "train" else 0.0


def describe_torch_model(spec: dict, parameters: list, batch: dict) -> dict:
    """Return the attention, with the kernel that torch chooses for it, and the number of parameters."""
    import torch

    attention = choose_torch_attention(spec)
    if attention == "sdpa":
        (num_rows, seq_length), num_heads = batch["ids"].shape, spec["config"]["num_attention_heads"]
        query = torch.empty(
            (num_rows, num_heads, seq_length, spec["config"]["hidden_size"] // num_heads),
            dtype=getattr(torch, spec["dtype"]),
            requires_grad=spec["task"] == "train",
            device=spec["device"],
        )
        mask = batch["inputs"].get("attention_mask")
        if mask is not None:
            mask = mask[:, None, None].bool().expand(-1, -1, seq_length, -1)
        backend = torch._fused_sdp_choice(query, query, query, mask, get_attention_dropout(spec))
        attention = f"sdpa, {torch.nn.attention.SDPBackend(backend).name.lower()}"
    return {"attention": attention, "parameters": sum(parameter.numel() for parameter in parameters)}


def build_torch_training(spec: dict, batches: list[dict]) -> tuple[Callable, dict]:
    """Return a training step: forward, backward, clipping of the global norm to 1, AdamW."""
    import torch

    build = build_torch_electra if spec["family"] == "electra" else build_torch_masked_lm
    models, compute_loss = build(spec)
    parameters = list(dict.fromkeys(parameter for model in models for parameter in model.parameters()))
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, eps=1e-6, weight_decay=0.01, fused=True)
    endless_batches = itertools.cycle(batches)

    def run_train_step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(spec["device"], torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            loss = compute_loss(next(endless_batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return run_train_step, describe_torch_model(spec, parameters, batches[0]) | {"optimizer": "AdamW(fused=True)"}


def build_torch_masked_lm(spec: dict) -> tuple[list, Callable]:
    """Return transformers' model in a list, and its own loss: masked tokens, and sentence pairs where they have a
    label."""
    import transformers

    pair_label = PAIR_LABELS[spec["family"]] if spec["pair"] else None
    auto_class = transformers.AutoModelForPreTraining if pair_label else transformers.AutoModelForMaskedLM
    model = build_torch_model(spec, auto_class)
    call = compile_torch_model(spec, model)

    def compute_loss(batch: dict):
        labels = {"labels": batch["labels"]}
        if pair_label:
            labels[pair_label] = batch["pair"]
        return call(input_ids=batch["ids"], **batch["inputs"], **labels).loss

    return [model], compute_loss


def build_torch_electra(spec: dict) -> tuple[list, Callable]:
    """Return ELECTRA's two models and its loss; they share one table of embeddings where their sizes agree."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    discriminator = build_torch_model(spec, AutoModelForPreTraining)
    generator = build_torch_model(spec | {"config": spec["generator"]}, AutoModelForMaskedLM)
    if generator.config.embedding_size == discriminator.config.embedding_size:
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.tie_weights()
    generate, discriminate = compile_torch_model(spec, generator), compile_torch_model(spec, discriminator)

    def compute_loss(batch: dict):
        rows, columns = batch["masked_positions"]
        logits = generate(input_ids=batch["ids"], **batch["inputs"]).logits[rows, columns].float()
        with torch.no_grad():
            samples = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel noise
            ids = batch["original"].index_put((rows, columns), samples)
            replaced = (ids != batch["original"]).float()
        rtd_logits = discriminate(input_ids=ids, **batch["inputs"]).logits.float()
        is_token = batch["mask"].float()
        rtd_sum = functional.binary_cross_entropy_with_logits(rtd_logits, replaced, weight=is_token, reduction="sum")
        mlm_loss = functional.cross_entropy(logits, batch["labels"][rows, columns])
        return mlm_loss + RTD_WEIGHT * rtd_sum / is_token.sum()

    return [generator, discriminator], compute_loss


def build_torch_inference(spec: dict, batches: list[dict]) -> tuple[Callable, dict]:
    """Return the encoder alone, with the sum of the first feature of its hidden states as checksum."""
    import torch
    from transformers import AutoModel

    model_options = {} if spec["family"] == "electra" else {"add_pooling_layer": False}
    model = build_torch_model(spec, AutoModel, **model_options).to(getattr(torch, spec["dtype"]))
    info = describe_torch_model(spec, list(model.parameters()), batches[0])
    if spec["engine"] == "onnxruntime":
        return build_onnxruntime_work(spec, model, batches), info
    call, endless_batches = compile_torch_model(spec, model), itertools.cycle(batches)

    @torch.inference_mode()
    def run_encoder():
        batch = next(endless_batches)
        return call(input_ids=batch["ids"], **batch["inputs"]).last_hidden_state[..., 0].float().sum()

    return run_encoder, info


def build_onnxruntime_work(spec: dict, model, batches: list[dict]) -> Callable[[], float]:
    """Return the encoder exported to onnxruntime."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.log_severity_level = 3
    inputs = [{"input_ids": batch["ids"], **batch["inputs"]} for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        names = {"input_names": list(inputs[0]), "output_names": ["hidden"]}
        torch.onnx.export(model, (), path, kwargs=inputs[0], **names, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    endless_inputs = itertools.cycle([{name: x.numpy() for name, x in arrays.items()} for arrays in inputs])

    def run_session():
        (hidden,) = session.run(["hidden"], next(endless_inputs))
        return float(hidden[..., 0].sum())

    return run_session
