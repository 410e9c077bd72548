"""What each part of `launch.py bench` measures, as rows of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from encoders.bench import inputs
from encoders.bench.data_speed import measure_data_speed
from encoders.bench.link_times import measure_communication
from encoders.bench.rounds import ALLOCATOR_ENVIRONMENT, ResultRow, Timing, Variant, compute_speedup, time_alternately
from encoders.costs.ledger import count_params, count_saved_activations, eval_param_shapes, step_flops
from encoders.costs.objective_flops import list_trained_configs
from encoders.data.packing import PackedFormat
from encoders.exchange.architectures import ARCHITECTURES, Architecture
from encoders.experiment import Experiment, apply_settings
from encoders.model.flops import forward_flops
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import VocabInfo
from encoders.utils.serialization import to_json_value

# Rows, hidden and intermediate width of the product that is the ceiling; an accelerator needs a large one.
MATMUL_SIZES, LARGE_MATMUL_SIZES = (1024, 768, 3072), (16_384, 4096, 16_384)
NUM_BATCHES = 4  # different ones, used in turn


@dataclass(frozen=True)
class BenchOptions:
    """`device` is cpu, gpu or tpu; on a CPU everything is pinned to `core`. `units` of work are timed at a time."""

    rounds: int = 7
    units: int = 1
    device: str = "cpu"
    core: int | None = None
    keep_freed_memory: bool = True  # both sides keep freed memory
    use_text: bool = False  # batches of the experiment's text in place of random ids
    task: str = "train"
    log: Callable[[str], None] = print
    variant_records: dict[str, dict] = field(default_factory=dict)  # what each said of itself, and all its seconds

    def build_environment(self) -> dict[str, str]:
        platform = {"gpu": "cuda"}.get(self.device, self.device)
        own = {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return own | (ALLOCATOR_ENVIRONMENT if self.keep_freed_memory and self.device == "cpu" else {})

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else self.device

    def time_variants(self, *variants: Variant) -> dict[str, Timing]:
        timings = time_alternately(variants, self.rounds, self.units, self.core, self.log)
        for name, timing in timings.items():
            self.variant_records[name] = timing.info | {
                "cpu": timing.cpu_seconds,
                "wall": timing.wall_seconds,
                "values": timing.values,
            }
        return timings


@dataclass(frozen=True)
class BenchInput:
    """A member and its batches, which lie in `path` for every side of a comparison."""

    experiment: Experiment
    spec: dict
    example_sizes: np.ndarray  # tokens of the examples of all batches

    @property
    def tokens_per_batch(self) -> float:
        """Tokens of a batch that are no padding."""
        return self.example_sizes.sum() / NUM_BATCHES

    def count_flops(self, task: str) -> float:
        """Matrix products that a batch needs: no padding, and nothing computed twice."""
        model = self.experiment.model
        whole = (
            step_flops(self.experiment, self.example_sizes)
            if task == "train"
            else forward_flops(model, self.example_sizes)
        )
        return whole.sum() / NUM_BATCHES

    def make_variant(self, name: str, options: BenchOptions, settings: Sequence[str] = ()) -> Variant:
        """Our side, with other values of some fields."""
        spec = self.spec | {
            "task": options.task,
            "experiment": to_json_value(apply_settings(self.experiment, settings)),
        }
        return Variant(name, "jax", spec, options.build_environment())


@contextmanager
def prepare_bench_input(experiment: Experiment, options: BenchOptions) -> Iterator[BenchInput]:
    """A member with its batches: of its text where they are packed or `options.use_text` says so, else random ids."""
    phase = experiment.phases[0]
    rows = (
        inputs.read_text_batches
        if options.use_text or isinstance(phase.format, PackedFormat)
        else inputs.make_random_batches
    )
    facts, batches = rows(experiment, phase, NUM_BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        inputs.save_batches(path, batches)
        yield BenchInput(
            experiment, {"facts": facts.to_json_value(), "inputs": str(path)}, inputs.count_example_tokens(batches)
        )


def make_matmul_variant(dtype: str, options: BenchOptions) -> Variant:
    """The ceiling: a product of matrices again and again."""
    spec = {"task": "product", "sizes": MATMUL_SIZES if options.device == "cpu" else LARGE_MATMUL_SIZES, "dtype": dtype}
    return Variant(f"product {dtype}", "jax", spec, options.build_environment())


def make_timing_row(label: str, timing: Timing, num_tokens: float) -> ResultRow:
    """The columns of every variant."""
    seconds = timing.median_seconds()
    return {
        "what": label,
        "ms": 1e3 * seconds,
        "least": 1e3 * min(timing.get_device_seconds()),
        "spread": timing.relative_spread(),
        "wall / cpu": timing.wall_to_cpu_ratio(),
        "tokens/s": num_tokens / seconds,
    }


# The parts ------------------------------------------------------------------------------------------------------------


def measure_step(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """A training step of each member, beside this device's ceiling; its compilation, and again from the cache."""
    for member in experiments:
        with prepare_bench_input(member, options) as found, tempfile.TemporaryDirectory() as cache:
            variant, top = found.make_variant(member.name, options), make_matmul_variant(member.model.dtype, options)
            stored = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            variant = replace(variant, environment=variant.environment | stored)
            timings = options.time_variants(variant, top)
            again = time_alternately([variant], 0, 1, options.core, options.log)
        if timings.keys() < {variant.name, top.name}:
            continue
        timing, most = timings[variant.name], timings[top.name]
        flops, best = found.count_flops(options.task), most.info["flops"] / most.median_seconds()
        row = make_timing_row(f"{member.name}, {options.task}, {member.model.dtype}", timing, found.tokens_per_batch)
        row |= {"GFLOP/s": flops / timing.median_seconds() / 1e9, "ceiling": best / 1e9}
        row |= {"share": flops / timing.median_seconds() / best if compute_speedup(timing, most) else None}
        row |= {"temporary MB": timing.info.get("temporary_bytes", 0) / 1e6}
        row |= {"peak MB": timing.info["peak_bytes"] / 1e6, "compile s": timing.info["compile_seconds"]}
        yield row | {"cached s": again[variant.name].info["compile_seconds"] if again else None}


def measure_inference(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """The encoder alone of each member, beside this device's ceiling."""
    return measure_step(experiments, replace(options, task="infer"))


SCAN, UNROLLED, REMATERIALISED = (
    {"scan": []},
    {"unrolled": ["model.unroll_layers=true"]},
    {"rematerialised": ["model.remat=dots"]},
)
AS_INSTALLED = {"as installed": {"engine": "eager", "fast": False}}
EAGER, COMPILED = {"eager": {"engine": "eager", "fast": True}}, {"compiled": {"engine": "compile", "fast": True}}
ONNXRUNTIME = {"onnxruntime": {"engine": "onnxruntime", "fast": False}}


def choose_engines(options: BenchOptions, dtype: str) -> tuple[dict[str, list[str]], dict[str, dict]]:
    """Our ways to do a piece of work, as settings, and theirs; only the fastest on an accelerator."""
    if options.device != "cpu":
        return SCAN, COMPILED
    ours = SCAN | UNROLLED | (REMATERIALISED if options.task == "train" else {})
    whole = dtype == "float32"
    exported = ONNXRUNTIME if whole and options.task == "infer" else {}
    return ours, (AS_INSTALLED if whole else {}) | EAGER | COMPILED | exported


def measure_peers(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """The same work with transformers and torch (and onnxruntime): our best way first, then it and theirs in one run.

    Where our rows are packed, theirs are the same format padded, and what counts is the tokens that are no padding.
    """
    for member in experiments:
        form = member.phases[0].format
        with ExitStack() as stack:
            found = flat = stack.enter_context(prepare_bench_input(member, options))
            if isinstance(form, PackedFormat):
                padded = replace(member, phases=(replace(member.phases[0], format=form.format),))
                flat = stack.enter_context(prepare_bench_input(padded, replace(options, use_text=True)))
            ours, others = choose_engines(options, member.model.dtype)
            choices = {f"{member.name}, {name}": settings for name, settings in ours.items()}
            tried = options.time_variants(
                *(found.make_variant(name, options, settings) for name, settings in choices.items())
            )
            if not tried:
                continue
            best = min(tried, key=lambda name: tried[name].upper_quartile())
            theirs = make_peer_variants(flat, others, options)
            timings = options.time_variants(found.make_variant(best, options, choices[best]), *theirs)
        if best not in timings:
            continue
        for name in choices:
            if name in tried and name != best:
                yield make_timing_row(name, tried[name], found.tokens_per_batch)
        mine = timings[best]
        yield make_timing_row(best, mine, found.tokens_per_batch)
        for variant in theirs:
            if variant.name in timings:
                timing = timings[variant.name]
                times = compute_speedup(timing, mine)
                row = make_timing_row(variant.name, timing, flat.tokens_per_batch)
                yield row | {
                    "ours is x times as fast": times and times * found.tokens_per_batch / flat.tokens_per_batch
                }


def make_peer_variants(bench_input: BenchInput, engines: dict[str, dict], options: BenchOptions) -> list[Variant]:
    """The variants of other libraries for a member's batches."""
    experiment = bench_input.experiment
    model, objective = experiment.model, experiment.objective
    architecture = find_architecture(experiment)
    path = Path(bench_input.spec["inputs"]).with_name("peers.npz")
    facts = VocabInfo.from_json_value(bench_input.spec["facts"])
    inputs.save_peer_batches(path, experiment, facts, inputs.load_batches(bench_input.spec["inputs"]))
    generator = objective.get_generator_config(model) if isinstance(objective, ReplacedTokenDetection) else None
    shared = {
        "task": options.task,
        "family": architecture.name,
        "config": architecture.build_hf_config(model),
        "generator": generator and architecture.build_hf_config(generator),
        "pair": bool(objective.required_fields),
        "dtype": model.dtype,
        "device": options.torch_device,
        "threads": 1,
        "inputs": str(path),
    }
    return [
        Variant(f"{experiment.name}, transformers {name}", "torch", shared | way, options.build_environment())
        for name, way in engines.items()
    ]


def find_architecture(experiment: Experiment) -> Architecture:
    """The architecture of transformers that computes the same as an experiment's model."""
    model = experiment.model
    known = (
        [ARCHITECTURES["electra"]]
        if isinstance(experiment.objective, ReplacedTokenDetection)
        else ARCHITECTURES.values()
    )
    for architecture in known:
        if not architecture.list_config_differences(model, max(model.position_offset - 1, 0)):
            return architecture
    raise ValueError(f"{experiment.name}: transformers has no architecture for this model")


ABLATION_SWITCHES = {
    "unrolled": ["model.unroll_layers=true"],
    "products saved (remat dots)": ["model.remat=dots"],
    "all recomputed (remat full)": ["model.remat=full"],
    "no attention dropout": ["model.attention_dropout=0"],
    "no dropout": ["model.attention_dropout=0", "model.hidden_dropout=0"],
    "tanh in gelu": ["model.activation=gelu_tanh"],
    "no clipping": ["optimizer.clip_norm=None"],
    "two micro-steps": ["grad_accum_steps=2"],
    "bfloat16": ["model.dtype=bfloat16"],
}


def measure_ablations(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """One switch at a time, each beside the step without it in a run of the two."""
    for member in experiments:
        with prepare_bench_input(member, options) as found:
            for switch, settings in ABLATION_SWITCHES.items():
                pair = found.make_variant(member.name, options), found.make_variant(switch, options, settings)
                timings = options.time_variants(*pair)
                if len(timings) == 2:
                    plain, other = timings.values()
                    row = make_timing_row(f"{member.name}, {switch}", other, found.tokens_per_batch)
                    row |= {"temporary MB": other.info.get("temporary_bytes", 0) / 1e6}
                    yield row | {"x as fast": compute_speedup(plain, other)}


def measure_ceiling(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """What this device can do at most: products of matrices in each dtype, and memory read and written."""
    spec = {"task": "copy", "bytes": 2**28}
    memory = Variant("memory", "jax", spec, options.build_environment())
    products = [make_matmul_variant(dtype, options) for dtype in ("float32", "bfloat16")]
    settings = {"threads": 1, "fast": True, "device": options.torch_device}
    torch = [Variant(f"{each.name}, torch", "torch", each.spec | settings, each.environment) for each in products]
    for name, timing in options.time_variants(*products, *torch, memory).items():
        rate = timing.info.get("flops", timing.info.get("bytes")) / timing.median_seconds() / 1e9
        row = {"what": name, "rate": rate, "unit": "GB/s" if name == "memory" else "GFLOP/s"}
        yield row | {"spread": timing.relative_spread(), "wall / cpu": timing.wall_to_cpu_ratio()}


# Dense bfloat16 FLOP/s and bytes/s of memory, as their makers print them.
DEVICE_PEAKS = {
    "A100 80GB": (312e12, 2.04e12),
    "H100 SXM": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "TPU v5e": (197e12, 0.82e12),
    "TPU v5p": (459e12, 2.77e12),
}


def estimate_roofline(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """The least time of a step on known devices, from the configuration alone.

    Products run at the full rate; every saved activation is written and read forward, read backward, and its gradient
    written (4 passes); parameters, moments and gradients move 40 bytes each.
    """
    for member in experiments:
        phase = member.phases[0]
        tokens = phase.batch_size * phase.seq_length
        flops = step_flops(member, np.array([phase.seq_length])).sum() * phase.batch_size
        moved = (
            4
            * tokens
            * sum(
                count_saved_activations(m, phase.seq_length)
                for m in list_trained_configs(member.objective, member.model)
            )
            * 2
        )
        moved += 40 * count_params(eval_param_shapes(member.model, member.objective))
        for device, (peak, bandwidth) in DEVICE_PEAKS.items():
            products, memory = flops / peak, moved / bandwidth
            yield {
                "what": f"{member.name}, {phase.batch_size} x {phase.seq_length}, {device}",
                "products ms": 1e3 * products,
                "memory ms": 1e3 * memory,
                "tokens/s at most": tokens / max(products, memory),
                "share without overlap": products / (products + memory),
            }


MEASUREMENTS = {
    "step": measure_step,
    "infer": measure_inference,
    "data": measure_data_speed,
    "peers": measure_peers,
    "ceiling": measure_ceiling,
    "roofline": estimate_roofline,
    "links": measure_communication,
    "ablate": measure_ablations,
}
