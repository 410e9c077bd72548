"""Measurements of `bench`: each yields the rows of one table."""

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

# Rows, hidden and intermediate size of the product that gives the peak rate; an accelerator needs a large one.
MATMUL_SIZES, LARGE_MATMUL_SIZES = (1024, 768, 3072), (16_384, 4096, 16_384)
NUM_BATCHES = 4  # used in turn


@dataclass(frozen=True)
class BenchOptions:
    """Options of a measurement: `device` is cpu, gpu or tpu; on a CPU every process is pinned to `core`.

    A round times `units` units of work. `variant_records` collects facts and seconds of every variant.
    """

    rounds: int = 7
    units: int = 1
    device: str = "cpu"
    core: int | None = None
    keep_freed_memory: bool = True  # by settings of glibc
    use_text: bool = False  # batches of the experiment's text instead of random ids
    task: str = "train"
    log: Callable[[str], None] = print
    variant_records: dict[str, dict] = field(default_factory=dict)

    def build_environment(self) -> dict[str, str]:
        """Return the environment variables of a variant's process."""
        platform = {"gpu": "cuda"}.get(self.device, self.device)
        environment = {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if self.keep_freed_memory and self.device == "cpu":
            environment |= ALLOCATOR_ENVIRONMENT
        return environment

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else self.device

    def time_variants(self, *variants: Variant) -> dict[str, Timing]:
        """Return the timing of each variant by name, and record it."""
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
    """An experiment and its batches, saved for every variant at `spec["inputs"]`."""

    experiment: Experiment
    spec: dict
    example_sizes: np.ndarray  # tokens of each example of all batches

    @property
    def tokens_per_batch(self) -> float:
        """Return the mean number of tokens of a batch, without padding."""
        return self.example_sizes.sum() / NUM_BATCHES

    def count_flops(self, task: str) -> float:
        """Return the FLOPs of the matrix products of a batch, without padding and recomputation."""
        if task == "train":
            flops = step_flops(self.experiment, self.example_sizes)
        else:
            flops = forward_flops(self.experiment.model, self.example_sizes)
        return flops.sum() / NUM_BATCHES

    def make_variant(self, name: str, options: BenchOptions, settings: Sequence[str] = ()) -> Variant:
        """Return the variant of this package, with settings of the experiment."""
        experiment = apply_settings(self.experiment, settings)
        spec = self.spec | {"task": options.task, "experiment": to_json_value(experiment)}
        return Variant(name, "jax", spec, options.build_environment())


@contextmanager
def prepare_bench_input(experiment: Experiment, options: BenchOptions) -> Iterator[BenchInput]:
    """Yield an experiment with its batches: of its text where they are packed or `options.use_text`, else random
    ids."""
    phase = experiment.phases[0]
    if options.use_text or isinstance(phase.format, PackedFormat):
        vocab, batches = inputs.read_text_batches(experiment, phase, NUM_BATCHES)
    else:
        vocab, batches = inputs.make_random_batches(experiment, phase, NUM_BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        inputs.save_batches(path, batches)
        spec = {"vocab": vocab.to_json_value(), "inputs": str(path)}
        yield BenchInput(experiment, spec, inputs.count_example_tokens(batches))


def make_matmul_variant(dtype: str, options: BenchOptions) -> Variant:
    """Return repeated matrix products, which give the peak rate."""
    spec = {"task": "product", "sizes": MATMUL_SIZES if options.device == "cpu" else LARGE_MATMUL_SIZES, "dtype": dtype}
    return Variant(f"product {dtype}", "jax", spec, options.build_environment())


def make_timing_row(label: str, timing: Timing, num_tokens: float) -> ResultRow:
    """Return the columns that every variant has."""
    seconds = timing.median_seconds()
    return {
        "what": label,
        "ms": 1e3 * seconds,
        "least": 1e3 * min(timing.get_device_seconds()),
        "spread": timing.relative_spread(),
        "wall / cpu": timing.wall_to_cpu_ratio(),
        "tokens/s": num_tokens / seconds,
    }


# Measurements ---------------------------------------------------------------------------------------------------------


def measure_step(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield a training step of each experiment beside the device's peak rate, and its compilation with and without a
    cache."""
    for experiment in experiments:
        name, dtype = experiment.name, experiment.model.dtype
        with prepare_bench_input(experiment, options) as bench_input, tempfile.TemporaryDirectory() as cache:
            variant, matmul = bench_input.make_variant(name, options), make_matmul_variant(dtype, options)
            cache_environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            variant = replace(variant, environment=variant.environment | cache_environment)
            timings = options.time_variants(variant, matmul)
            cached = time_alternately([variant], 0, 1, options.core, options.log)
        if timings.keys() < {variant.name, matmul.name}:
            continue
        timing, peak = timings[variant.name], timings[matmul.name]
        flops_per_second = bench_input.count_flops(options.task) / timing.median_seconds()
        peak_flops = peak.info["flops"] / peak.median_seconds()
        row = make_timing_row(f"{name}, {options.task}, {dtype}", timing, bench_input.tokens_per_batch)
        yield row | {
            "GFLOP/s": flops_per_second / 1e9,
            "ceiling": peak_flops / 1e9,
            "share": flops_per_second / peak_flops if compute_speedup(timing, peak) else None,
            "temporary MB": timing.info.get("temporary_bytes", 0) / 1e6,
            "peak MB": timing.info["peak_bytes"] / 1e6,
            "compile s": timing.info["compile_seconds"],
            "cached s": cached[variant.name].info["compile_seconds"] if cached else None,
        }


def measure_inference(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the inference of each experiment's encoder beside the device's peak rate."""
    return measure_step(experiments, replace(options, task="infer"))


SCAN = {"scan": []}
UNROLLED = {"unrolled": ["model.unroll_layers=true"]}
REMATERIALISED = {"rematerialised": ["model.remat=dots"]}
AS_INSTALLED = {"as installed": {"engine": "eager", "fast": False}}
EAGER = {"eager": {"engine": "eager", "fast": True}}
COMPILED = {"compiled": {"engine": "compile", "fast": True}}
ONNXRUNTIME = {"onnxruntime": {"engine": "onnxruntime", "fast": False}}


def choose_engines(options: BenchOptions, dtype: str) -> tuple[dict[str, list[str]], dict[str, dict]]:
    """Return settings of this package and specs of the peers; on an accelerator only the fastest of each."""
    if options.device != "cpu":
        return SCAN, COMPILED
    settings, engines = SCAN | UNROLLED, EAGER | COMPILED
    if options.task == "train":
        settings |= REMATERIALISED
    if dtype == "float32":
        engines = AS_INSTALLED | engines
    if dtype == "float32" and options.task == "infer":
        engines |= ONNXRUNTIME
    return settings, engines


def measure_peers(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the same work with transformers, torch and onnxruntime, timed together with this package's best settings.

    For packed rows the peers have the same format padded; tokens per second count no padding.
    """
    for experiment in experiments:
        row_format = experiment.phases[0].format
        with ExitStack() as stack:
            jax_input = peer_input = stack.enter_context(prepare_bench_input(experiment, options))
            if isinstance(row_format, PackedFormat):
                padded = replace(experiment, phases=(replace(experiment.phases[0], format=row_format.format),))
                peer_input = stack.enter_context(prepare_bench_input(padded, replace(options, use_text=True)))
            settings_by_name, engines = choose_engines(options, experiment.model.dtype)
            jax_variants = {}
            for name, settings in settings_by_name.items():
                variant = jax_input.make_variant(f"{experiment.name}, {name}", options, settings)
                jax_variants[variant.name] = variant
            jax_timings = options.time_variants(*jax_variants.values())
            if not jax_timings:
                continue
            best = min(jax_timings, key=lambda name: jax_timings[name].upper_quartile())
            peers = make_peer_variants(peer_input, engines, options)
            timings = options.time_variants(jax_variants[best], *peers)
        if best not in timings:
            continue
        for name, timing in jax_timings.items():
            if name != best:
                yield make_timing_row(name, timing, jax_input.tokens_per_batch)
        yield make_timing_row(best, timings[best], jax_input.tokens_per_batch)
        for peer in peers:
            if peer.name in timings:
                speedup = compute_speedup(timings[peer.name], timings[best])
                if speedup is not None:
                    speedup *= jax_input.tokens_per_batch / peer_input.tokens_per_batch
                row = make_timing_row(peer.name, timings[peer.name], peer_input.tokens_per_batch)
                yield row | {"ours is x times as fast": speedup}


def make_peer_variants(bench_input: BenchInput, engines: dict[str, dict], options: BenchOptions) -> list[Variant]:
    """Return the variants of other libraries for an experiment's batches."""
    experiment = bench_input.experiment
    model, objective = experiment.model, experiment.objective
    architecture = find_published_architecture(experiment)
    path = Path(bench_input.spec["inputs"]).with_name("peers.npz")
    vocab = VocabInfo.from_json_value(bench_input.spec["vocab"])
    inputs.save_peer_batches(path, experiment, vocab, inputs.load_batches(bench_input.spec["inputs"]))
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
        Variant(f"{experiment.name}, transformers {name}", "torch", shared | engine, options.build_environment())
        for name, engine in engines.items()
    ]


def find_published_architecture(experiment: Experiment) -> Architecture:
    """Return the architecture of transformers that computes the same as an experiment's model.

    Raises `ValueError` where none does.
    """
    model = experiment.model
    is_electra = isinstance(experiment.objective, ReplacedTokenDetection)
    for architecture in [ARCHITECTURES["electra"]] if is_electra else ARCHITECTURES.values():
        if not architecture.list_config_differences(model, max(model.position_offset - 1, 0)):
            return architecture
    raise ValueError(f"{experiment.name}: no architecture of transformers computes this model")


ABLATION_SETTINGS = {
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
    """Yield one changed setting at a time, timed together with the step without it."""
    for experiment in experiments:
        with prepare_bench_input(experiment, options) as bench_input:
            base = bench_input.make_variant(experiment.name, options)
            for name, settings in ABLATION_SETTINGS.items():
                timings = options.time_variants(base, bench_input.make_variant(name, options, settings))
                if len(timings) == 2:
                    timing = timings[name]
                    row = make_timing_row(f"{experiment.name}, {name}", timing, bench_input.tokens_per_batch)
                    row |= {"temporary MB": timing.info.get("temporary_bytes", 0) / 1e6}
                    yield row | {"x as fast": compute_speedup(timings[base.name], timing)}


def measure_ceiling(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the peak rates of this device: matrix products in each dtype, and memory read and written."""
    spec = {"task": "copy", "bytes": 2**28}
    memory = Variant("memory", "jax", spec, options.build_environment())
    products = [make_matmul_variant(dtype, options) for dtype in ("float32", "bfloat16")]
    settings = {"threads": 1, "fast": True, "device": options.torch_device}
    torch = [
        Variant(f"{product.name}, torch", "torch", product.spec | settings, product.environment) for product in products
    ]
    for name, timing in options.time_variants(*products, *torch, memory).items():
        rate = timing.info.get("flops", timing.info.get("bytes")) / timing.median_seconds() / 1e9
        row = {"what": name, "rate": rate, "unit": "GB/s" if name == "memory" else "GFLOP/s"}
        yield row | {"spread": timing.relative_spread(), "wall / cpu": timing.wall_to_cpu_ratio()}


# Dense bfloat16 FLOP/s and bytes/s of memory, from the data sheets.
DEVICE_PEAKS = {
    "A100 80GB": (312e12, 2.04e12),
    "H100 SXM": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "TPU v5e": (197e12, 0.82e12),
    "TPU v5p": (459e12, 2.77e12),
}


def estimate_roofline(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the shortest time of a step on known devices, from the configuration alone.

    Products run at the peak rate. Every saved activation moves four times: written and read forward, read backward, and
    its gradient written. Parameters with their moments and gradients move 40 bytes each.
    """
    for experiment in experiments:
        phase = experiment.phases[0]
        tokens = phase.batch_size * phase.seq_length
        flops = step_flops(experiment, np.array([phase.seq_length])).sum() * phase.batch_size
        configs = list_trained_configs(experiment.objective, experiment.model)
        activations = sum(count_saved_activations(config, phase.seq_length) for config in configs)
        num_params = count_params(eval_param_shapes(experiment.model, experiment.objective))
        moved_bytes = 4 * tokens * activations * 2 + 40 * num_params
        for device, (peak, bandwidth) in DEVICE_PEAKS.items():
            products, memory = flops / peak, moved_bytes / bandwidth
            yield {
                "what": f"{experiment.name}, {phase.batch_size} x {phase.seq_length}, {device}",
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
