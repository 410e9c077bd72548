"""Units of work of torch and transformers, as fast as an experienced user would set them up.

The libraries are imported by `build_torch_work`, which raises `ImportError` where one is not installed.
"""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from encoders.bench.rounds import choose_num_repeats
from encoders.utils.errors import UserError

PAIR_LABELS = {"bert": "next_sentence_label", "albert": "sentence_order_label"}  # the pair's label in ...ForPreTraining
# The same function as one kernel, instead of a chain of eight.
EQUIVALENT_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}
WITHOUT_POOLER = ("electra", "modernbert", "deberta-v2")
LEARNING_RATE = 5e-4
RTD_WEIGHT = 50.0  # factor of the discriminator's loss


def build_torch_work(spec: dict) -> tuple[Callable, dict]:
    """Return one unit of work to time, which returns the loss or a checksum of inference, and facts about it.

    Raises `ValueError` for an engine that cannot do the work.
    """
    work, packages = (spec["task"], spec["device"], spec["dtype"]), ["torch"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        torch.set_num_threads(spec["threads"])
        if spec["device"] == "cuda":
            torch.set_float32_matmul_precision("high")  # TensorFloat-32, as in JAX's products of float32
        torch.manual_seed(0)
        if spec["task"] == "product":
            run_unit, info = build_torch_matmul(spec)
        else:
            engines = ["eager", "compile", *(["onnxruntime"] if work == ("infer", "cpu", "float32") else [])]
            if spec["engine"] not in engines:
                raise UserError(f"engine={spec['engine']!r} does not do {', '.join(work)}; {', '.join(engines)} do")
            packages += ["transformers", *(["onnxruntime"] if spec["engine"] == "onnxruntime" else [])]
            run_unit, info = build_transformers_work(spec)
    return run_unit, info | {"device": spec["device"], "versions": {name: version(name) for name in packages}}


def build_torch_matmul(spec: dict) -> tuple[Callable, dict]:
    """Return repeated matrix products, the fastest work that torch has."""
    import torch

    n, d, f = spec["sizes"]
    options = {"fill_value": 0.5, "dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    a, b = torch.full((n, d), **options), torch.full((d, f), **options)
    num_repeats = choose_num_repeats(lambda: float((a @ b)[0, 0]))

    def repeat_matmul():
        for _ in range(num_repeats):
            c = a @ b
        return c[0, 0]

    return repeat_matmul, {"flops": 2.0 * n * d * f * num_repeats}


def build_transformers_work(spec: dict) -> tuple[Callable, dict]:
    """Return training or inference of a model of transformers; a compiled one has run three times."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batches = load_torch_batches(spec)
    build = build_torch_training if spec["task"] == "train" else build_torch_inference
    model, run_unit, info = build(spec, batches)
    info["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    info["attention"] = describe_attention(spec, batches[0])
    if spec["engine"] == "compile":
        start = time.perf_counter()
        for _ in range(3):
            run_unit()
        info["compile_seconds"] = time.perf_counter() - start
    return run_unit, info


def load_torch_batches(spec: dict) -> list[dict]:
    """Return the saved batches on the device; the mask, which costs time, is an input only where a batch has
    padding."""
    import torch

    with np.load(spec["inputs"]) as stored:
        arrays = {name: torch.from_numpy(stored[name]).long().to(spec["device"]) for name in stored.files}
    batches = [{name: array[i] for name, array in arrays.items()} for i in range(len(arrays["ids"]))]
    for batch in batches:
        batch["masked_positions"] = (batch["labels"] != -100).nonzero(as_tuple=True)
        batch["inputs"] = {"token_type_ids": batch["types"]} if "type_vocab_size" in spec["config"] else {}
        if not arrays["mask"].all():
            batch["inputs"]["attention_mask"] = batch["mask"]
    return batches


def build_torch_model(spec: dict, auto_class, **model_options):
    """Return a freshly initialised model of transformers on the device, which compiles itself where the engine does."""
    from transformers import AutoConfig

    activation = spec["config"].get("hidden_act")
    changes = {"hidden_act": EQUIVALENT_ACTIVATIONS.get(activation, activation)} if activation else {}
    config = AutoConfig.for_model(spec["family"], **spec["config"] | changes)
    model = auto_class.from_config(config, attn_implementation=choose_torch_attention(spec)[0], **model_options)
    model.to(spec["device"]).train(spec["task"] == "train")
    if spec["engine"] == "compile":
        model.compile()
    return model


def choose_torch_attention(spec: dict) -> tuple[str, float]:
    """Return the faster attention and its dropout: on a CPU, sdpa lacks fused dropout and exports with more nodes."""
    names = ("attention_probs_dropout_prob", "attention_dropout")
    rate = next(spec["config"][name] for name in names if name in spec["config"])
    dropout = rate if spec["task"] == "train" else 0.0
    is_eager = spec["device"] == "cpu" and (dropout > 0 or spec["engine"] == "onnxruntime")
    return "eager" if is_eager else "sdpa", dropout


def describe_attention(spec: dict, batch: dict) -> str:
    """Return the attention, with the kernel that torch chooses for it."""
    import torch

    attention, dropout = choose_torch_attention(spec)
    if attention == "eager":
        return attention
    (num_rows, seq_length), num_heads = batch["ids"].shape, spec["config"]["num_attention_heads"]
    shape = num_rows, num_heads, seq_length, spec["config"]["hidden_size"] // num_heads
    options = {"dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    query = torch.empty(shape, requires_grad=spec["task"] == "train", **options)
    mask = batch["inputs"].get("attention_mask")
    if mask is not None:
        mask = mask[:, None, None].bool().expand(-1, -1, seq_length, -1)
    backend = torch._fused_sdp_choice(query, query, query, mask, dropout)
    return f"sdpa, {torch.nn.attention.SDPBackend(backend).name.lower()}"


def build_torch_training(spec: dict, batches: list[dict]) -> tuple:
    """Return the trained models, a step and its optimizer: forward, backward, the global norm clipped to 1, AdamW."""
    import torch

    build = build_torch_electra if spec["family"] == "electra" else build_torch_masked_lm
    model, compute_loss = build(spec)
    parameters, endless_batches = list(model.parameters()), itertools.cycle(batches)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, eps=1e-6, weight_decay=0.01, fused=True)

    def run_train_step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(spec["device"], torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            loss = compute_loss(next(endless_batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return model, run_train_step, {"optimizer": "AdamW(fused=True)"}


def build_torch_masked_lm(spec: dict) -> tuple:
    """Return transformers' model, and its own loss: masked tokens, and sentence pairs where they have a label."""
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    pair_label = PAIR_LABELS[spec["family"]] if spec["pair"] else None
    model = build_torch_model(spec, AutoModelForPreTraining if pair_label else AutoModelForMaskedLM)

    def compute_loss(batch: dict):
        labels = {"labels": batch["labels"]} | ({pair_label: batch["pair"]} if pair_label else {})
        return model(input_ids=batch["ids"], **batch["inputs"], **labels).loss

    return model, compute_loss


def build_torch_electra(spec: dict) -> tuple:
    """Return ELECTRA's two models and its loss; they share one table of embeddings where their sizes agree."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    discriminator = build_torch_model(spec, AutoModelForPreTraining)
    generator = build_torch_model(spec | {"config": spec["generator"]}, AutoModelForMaskedLM)
    if generator.config.embedding_size == discriminator.config.embedding_size:
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.tie_weights()

    def compute_loss(batch: dict):
        rows, columns = batch["masked_positions"]
        logits = generator(input_ids=batch["ids"], **batch["inputs"]).logits[rows, columns].float()
        with torch.no_grad():
            samples = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)  # Gumbel noise
            ids = batch["original"].index_put((rows, columns), samples)
            replaced = (ids != batch["original"]).float()
        rtd_logits, is_token = discriminator(input_ids=ids, **batch["inputs"]).logits.float(), batch["mask"].float()
        rtd_sum = functional.binary_cross_entropy_with_logits(rtd_logits, replaced, weight=is_token, reduction="sum")
        mlm_loss = functional.cross_entropy(logits, batch["labels"][rows, columns])
        return mlm_loss + RTD_WEIGHT * rtd_sum / is_token.sum()

    return torch.nn.ModuleList([generator, discriminator]), compute_loss


def build_torch_inference(spec: dict, batches: list[dict]) -> tuple:
    """Return the encoder alone, and the sum of the first feature of its hidden states as checksum."""
    import torch
    from transformers import AutoModel

    model_options = {} if spec["family"] in WITHOUT_POOLER else {"add_pooling_layer": False}
    model = build_torch_model(spec, AutoModel, **model_options).to(getattr(torch, spec["dtype"]))
    inputs = [{"input_ids": batch["ids"], **batch["inputs"]} for batch in batches]
    if spec["engine"] == "onnxruntime":
        run_encoder = export_to_onnxruntime(model, inputs[0], spec["threads"])
        inputs = [{name: array.numpy() for name, array in arrays.items()} for arrays in inputs]
    else:
        run_encoder = torch.inference_mode()(lambda arrays: model(**arrays).last_hidden_state[..., 0].float().sum())
    endless_inputs = itertools.cycle(inputs)
    return model, lambda: run_encoder(next(endless_inputs)), {}


def export_to_onnxruntime(model, inputs: dict, num_threads: int) -> Callable[[dict], float]:
    """Return the encoder as a function of onnxruntime, from inputs to the checksum of hidden states."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = num_threads, 3
    names = {"input_names": list(inputs), "output_names": ["hidden"]}
    program = torch.onnx.export(model, (), kwargs=inputs, **names, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(program.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(["hidden"], arrays)[0][..., 0].sum()
