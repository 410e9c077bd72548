"""Measurements of `bench`: each yields the rows of one table."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from encoders.bench import inputs
from encoders.bench.data_speed import measure_data_speed
from encoders.bench.rounds import ALLOCATOR_ENVIRONMENT, ResultRow, Timing, Variant, compute_speedup, time_alternately
from encoders.costs.ledger import step_flops
from encoders.data.batch import Batch
from encoders.data.packing import PackedFormat
from encoders.experiment import Experiment, apply_settings
from encoders.families.registry import ARCHITECTURES
from encoders.model.flops import forward_flops
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
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
    changes: Sequence[str] = ()  # settings that `ablate` times, one at a time, instead of `ABLATION_SETTINGS`
    log: Callable[[str], None] = print
    variant_records: dict[str, dict] = field(default_factory=dict)

    def make_variant(self, name: str, builder: str, spec: dict, **environment: str) -> Variant:
        """Return a variant whose process uses the device."""
        platform = "cuda" if self.device == "gpu" else self.device
        variables = {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if self.keep_freed_memory and self.device == "cpu":
            variables |= ALLOCATOR_ENVIRONMENT
        return Variant(name, builder, spec, variables | environment)

    def make_matmul_variant(self, dtype: str) -> Variant:
        """Return repeated matrix products, which give the peak rate."""
        sizes = MATMUL_SIZES if self.device == "cpu" else LARGE_MATMUL_SIZES
        return self.make_variant(f"product {dtype}", "jax", {"task": "product", "sizes": sizes, "dtype": dtype})

    @property
    def torch_settings(self) -> dict:
        return {"threads": 1, "device": "cuda" if self.device == "gpu" else self.device}

    def time_variants(self, *variants: Variant, rounds: int | None = None) -> dict[str, Timing]:
        """Return the timing of each variant by name, and record it."""
        timings = time_alternately(variants, self.rounds if rounds is None else rounds, self.units, self.core, self.log)
        for name, timing in timings.items():
            seconds = {"cpu": timing.cpu_seconds, "wall": timing.wall_seconds, "values": timing.values}
            self.variant_records[name] = timing.info | seconds
        return timings


@dataclass(frozen=True)
class BenchInput:
    """An experiment and its batches, which all variants read from `folder`."""

    experiment: Experiment
    vocab: VocabInfo
    batches: list[Batch]
    folder: Path
    example_sizes: np.ndarray  # tokens of each example of all batches

    @property
    def tokens_per_batch(self) -> float:
        """Return the mean number of tokens of a batch, without padding."""
        return self.example_sizes.sum() / NUM_BATCHES

    def make_variant(self, name: str, options: BenchOptions, settings: Sequence[str] = (), **environment) -> Variant:
        """Return the variant of this package, with settings of the experiment."""
        experiment = to_json_value(apply_settings(self.experiment, settings))
        spec = {"task": options.task, "experiment": experiment, "inputs": str(self.folder / "batches.pickle")}
        return options.make_variant(name, "jax", spec, **environment)

    def make_row(self, label: str, timing: Timing) -> ResultRow:
        """Return the columns that every variant has."""
        seconds = timing.median_seconds()
        return {
            "what": label,
            "ms": 1e3 * seconds,
            "least": 1e3 * min(timing.device_seconds),
            "spread": timing.relative_spread(),
            "wall / cpu": timing.wall_to_cpu_ratio(),
            "tokens/s": self.tokens_per_batch / seconds,
        }


@contextmanager
def prepare_bench_input(experiment: Experiment, options: BenchOptions) -> Iterator[BenchInput]:
    """Yield an experiment with batches of its text where they are packed or `options.use_text`, else of random ids.

    They are of the first phase, with its mask rate and the full size of its batch.
    """
    phase = replace(experiment.phases[0], batch_ramp=None)
    experiment = replace(experiment, objective=experiment.objective.replace_mask_rate(phase.mask_rate))
    needs_text = options.use_text or isinstance(phase.format, PackedFormat)
    make_batches = inputs.read_text_batches if needs_text else inputs.make_random_batches
    vocab, batches = make_batches(experiment, phase, NUM_BATCHES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "batches.pickle").write_bytes(pickle.dumps((vocab, batches)))
        yield BenchInput(experiment, vocab, batches, folder, inputs.count_example_tokens(batches))


# Measurements ---------------------------------------------------------------------------------------------------------


def measure_step(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield a training step of each experiment, or its encoder's inference, beside the device's peak rate, and its
    compilation with and without a cache."""
    for experiment in experiments:
        name, dtype = experiment.name, experiment.model.dtype
        with prepare_bench_input(experiment, options) as bench_input, tempfile.TemporaryDirectory() as cache:
            cache_settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            variant = bench_input.make_variant(name, options, **cache_settings)
            matmul = options.make_matmul_variant(dtype)
            timings = options.time_variants(variant, matmul)
            cached = time_alternately([variant], 0, 1, options.core, options.log)
        if timings.keys() < {variant.name, matmul.name}:
            continue
        timing, peak = timings[variant.name], timings[matmul.name]
        sizes = bench_input.example_sizes  # neither padding nor recomputation counts
        flops = forward_flops(experiment.model, sizes)
        if options.task == "train":
            flops = step_flops(bench_input.experiment, sizes)
        flops_per_second = flops.sum() / NUM_BATCHES / timing.median_seconds()
        peak_flops = peak.info["flops"] / peak.median_seconds()
        yield bench_input.make_row(f"{name}, {options.task}, {dtype}", timing) | {
            "GFLOP/s": flops_per_second / 1e9,
            "ceiling": peak_flops / 1e9,
            "share": flops_per_second / peak_flops if compute_speedup(timing, peak) else None,
            "temporary MB": timing.info.get("temporary_bytes", 0) / 1e6,
            "peak MB": timing.info["peak_bytes"] / 1e6,
            "compile s": timing.info["compile_seconds"],
            "cached s": cached[variant.name].info["compile_seconds"] if cached else None,
        }


JAX_SETTINGS = {"scan": [], "unrolled": ["model.unroll_layers=true"], "rematerialised": ["model.remat=dots"]}
TORCH_ENGINES = {"eager": "eager", "compiled": "compile", "onnxruntime": "onnxruntime"}


def choose_variants(options: BenchOptions, dtype: str) -> tuple[list[str], list[str]]:
    """Return names of `JAX_SETTINGS` and of `TORCH_ENGINES`; on an accelerator only the fastest of each."""
    if options.device != "cpu":
        return ["scan"], ["compiled"]
    is_training = options.task == "train"
    settings = ["scan", "unrolled", "rematerialised"] if is_training else ["scan", "unrolled"]
    has_onnxruntime = dtype == "float32" and not is_training
    return settings, list(TORCH_ENGINES) if has_onnxruntime else ["eager", "compiled"]


def measure_peers(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the same work with transformers, torch and onnxruntime, timed together with this package's best settings.

    For packed rows the peers have the same format padded; tokens per second count no padding.
    """
    for experiment in experiments:
        phase = experiment.phases[0]
        with ExitStack() as stack:
            jax_input = peer_input = stack.enter_context(prepare_bench_input(experiment, options))
            if isinstance(phase.format, PackedFormat):
                padded = replace(experiment, phases=(replace(phase, format=phase.format.format),))
                peer_input = stack.enter_context(prepare_bench_input(padded, replace(options, use_text=True)))
            settings, engines = choose_variants(options, experiment.model.dtype)
            settings_by_name = {f"{experiment.name}, {setting}": JAX_SETTINGS[setting] for setting in settings}
            jax_variants = {
                name: jax_input.make_variant(name, options, changes) for name, changes in settings_by_name.items()
            }
            jax_timings = options.time_variants(*jax_variants.values())
            if not jax_timings:
                continue
            best = min(jax_timings, key=lambda name: jax_timings[name].upper_quartile())
            peers = make_peer_variants(peer_input, engines, options)
            timings = options.time_variants(jax_variants[best], *peers)
        if best not in timings:
            continue
        del jax_timings[best]
        for name, timing in (jax_timings | {best: timings[best]}).items():
            yield jax_input.make_row(name, timing)
        for name in (peer.name for peer in peers if peer.name in timings):
            speedup = compute_speedup(timings[name], timings[best])
            if speedup is not None:
                speedup *= jax_input.tokens_per_batch / peer_input.tokens_per_batch
            yield peer_input.make_row(name, timings[name]) | {"ours is x times as fast": speedup}


def make_peer_variants(bench_input: BenchInput, engines: Sequence[str], options: BenchOptions) -> list[Variant]:
    """Return the variants of other libraries for an experiment's batches.

    Raises `ValueError` where no architecture of transformers computes the same as the model.
    """
    experiment, path = bench_input.experiment, bench_input.folder / "peers.npz"
    model, objective = experiment.model, experiment.objective
    is_electra = isinstance(objective, ReplacedTokenDetection)
    for architecture in [ARCHITECTURES["electra"]] if is_electra else ARCHITECTURES.values():
        if not architecture.list_config_differences(model, max(model.position_offset - 1, 0)):
            break
    else:
        raise UserError(f"{experiment.name}: no architecture of transformers computes this model")
    inputs.save_peer_batches(path, experiment, bench_input.vocab, bench_input.batches)
    generator = objective.get_generator_config(model) if is_electra else None
    spec = options.torch_settings | {
        "task": options.task,
        "family": architecture.name,
        "config": architecture.build_hf_config(model),
        "generator": generator and architecture.build_hf_config(generator),
        "pair": bool(objective.required_fields),
        "dtype": model.dtype,
        "inputs": str(path),
    }
    return [
        options.make_variant(f"{experiment.name}, transformers {name}", "torch", spec | {"engine": TORCH_ENGINES[name]})
        for name in engines
    ]


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
            changes = {change: [change] for change in options.changes} or ABLATION_SETTINGS
            for name, settings in changes.items():
                timings = options.time_variants(base, bench_input.make_variant(name, options, settings))
                if len(timings) == 2:
                    timing = timings[name]
                    yield bench_input.make_row(f"{experiment.name}, {name}", timing) | {
                        "temporary MB": timing.info.get("temporary_bytes", 0) / 1e6,
                        "x as fast": compute_speedup(timings[base.name], timing),
                    }


def measure_ceiling(experiments: Sequence[Experiment], options: BenchOptions) -> Iterator[ResultRow]:
    """Yield the peak rates of this device: matrix products in each dtype, and memory read and written."""
    variants = [options.make_matmul_variant(dtype) for dtype in ("float32", "bfloat16")]
    for product in list(variants):
        spec = product.spec | options.torch_settings
        variants.append(options.make_variant(f"{product.name}, torch", "torch", spec))
    variants.append(options.make_variant("memory", "jax", {"task": "copy", "bytes": 2**28}))
    for name, timing in options.time_variants(*variants).items():
        rate = timing.info.get("flops", timing.info.get("bytes")) / timing.median_seconds() / 1e9
        row = {"what": name, "rate": rate, "unit": "GB/s" if name == "memory" else "GFLOP/s"}
        yield row | {"spread": timing.relative_spread(), "wall / cpu": timing.wall_to_cpu_ratio()}


MEASUREMENTS = {
    "step": measure_step,
    "infer": lambda experiments, options: measure_step(experiments, replace(options, task="infer")),
    "data": measure_data_speed,
    "peers": measure_peers,
    "ceiling": measure_ceiling,
    "ablate": measure_ablations,
}
