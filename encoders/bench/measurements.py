"""What each part of `launch.py bench` measures, as rows of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from encoders.bench import inputs
from encoders.bench.communication import links
from encoders.bench.data_speed import measure
from encoders.bench.rounds import ALLOCATOR, Row, Timing, Variant, alternate, ratio
from encoders.costs.ledger import parameters, saved_values, shapes, step_flops
from encoders.data.packing import Packed
from encoders.exchange.architectures import ARCHITECTURES, Architecture
from encoders.experiment import Experiment, override
from encoders.model.flops import forward_flops
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.text.tokenization import Facts
from encoders.utils.overrides import to_json

# Rows, hidden and intermediate width of the product that is the ceiling; an accelerator needs a large one.
PRODUCT, LARGE_PRODUCT = (1024, 768, 3072), (16_384, 4096, 16_384)
BATCHES = 4  # different ones, used in turn


@dataclass(frozen=True)
class Options:
    """`device` is cpu, gpu or tpu; on a CPU everything is pinned to `core`. `units` of work are timed at a time."""

    rounds: int = 7
    units: int = 1
    device: str = "cpu"
    core: int | None = None
    tuned: bool = True  # both sides keep freed memory
    text: bool = False  # batches of the experiment's text in place of random ids
    task: str = "train"
    say: Callable[[str], None] = print
    variants: dict[str, dict] = field(default_factory=dict)  # what each said of itself, and all its seconds

    def environment(self) -> dict[str, str]:
        platform = {"gpu": "cuda"}.get(self.device, self.device)
        own = {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return own | (ALLOCATOR if self.tuned and self.device == "cpu" else {})

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else self.device

    def run(self, *variants: Variant) -> dict[str, Timing]:
        timings = alternate(variants, self.rounds, self.units, self.core, self.say)
        for name, timing in timings.items():
            self.variants[name] = timing.facts | {"cpu": timing.cpu, "wall": timing.wall, "values": timing.values}
        return timings


@dataclass(frozen=True)
class Prepared:
    """A member and its batches, which lie in `path` for every side of a comparison."""

    experiment: Experiment
    spec: dict
    sizes: np.ndarray  # tokens of the examples of all batches

    @property
    def tokens(self) -> float:
        """Tokens of a batch that are no padding."""
        return self.sizes.sum() / BATCHES

    def flops(self, task: str) -> float:
        """Matrix products that a batch needs: no padding, and nothing computed twice."""
        model = self.experiment.model
        whole = step_flops(self.experiment, self.sizes) if task == "train" else forward_flops(model, self.sizes)
        return whole.sum() / BATCHES

    def variant(self, name: str, options: Options, settings: Sequence[str] = ()) -> Variant:
        """Our side, with other values of some fields."""
        spec = self.spec | {"task": options.task, "experiment": to_json(override(self.experiment, settings))}
        return Variant(name, "ours", spec, options.environment())


@contextmanager
def ready(member: Experiment, options: Options) -> Iterator[Prepared]:
    """A member with its batches: of its text where they are packed or `options.text` says so, else of random ids."""
    phase = member.phases[0]
    rows = inputs.text_rows if options.text or isinstance(phase.format, Packed) else inputs.random_rows
    facts, batches = rows(member, phase, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        inputs.save(path, batches)
        yield Prepared(member, {"facts": facts.to_json(), "inputs": str(path)}, inputs.sizes(batches))


def product(dtype: str, options: Options) -> Variant:
    """The ceiling: a product of matrices again and again."""
    spec = {"task": "product", "sizes": PRODUCT if options.device == "cpu" else LARGE_PRODUCT, "dtype": dtype}
    return Variant(f"product {dtype}", "ours", spec, options.environment())


def timed(name: str, timing: Timing, tokens: float) -> Row:
    """The columns of every variant."""
    seconds = timing.seconds()
    return {
        "what": name,
        "ms": 1e3 * seconds,
        "least": 1e3 * min(timing.counted()),
        "spread": timing.spread(),
        "wall / cpu": timing.busy(),
        "tokens/s": tokens / seconds,
    }


# The parts ------------------------------------------------------------------------------------------------------------


def step(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """A training step of each member, beside this device's ceiling; its compilation, and again from the cache."""
    for member in members:
        with ready(member, options) as found, tempfile.TemporaryDirectory() as cache:
            variant, top = found.variant(member.name, options), product(member.model.dtype, options)
            stored = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            variant = replace(variant, environment=variant.environment | stored)
            timings = options.run(variant, top)
            again = alternate([variant], 0, 1, options.core, options.say)
        if timings.keys() < {variant.name, top.name}:
            continue
        timing, most = timings[variant.name], timings[top.name]
        flops, best = found.flops(options.task), most.facts["flops"] / most.seconds()
        row = timed(f"{member.name}, {options.task}, {member.model.dtype}", timing, found.tokens)
        row |= {"GFLOP/s": flops / timing.seconds() / 1e9, "ceiling": best / 1e9}
        row |= {"share": flops / timing.seconds() / best if ratio(timing, most) else None}
        row |= {"temporary MB": timing.facts.get("temporary_bytes", 0) / 1e6}
        row |= {"peak MB": timing.facts["peak_bytes"] / 1e6, "compile s": timing.facts["compile_seconds"]}
        yield row | {"cached s": again[variant.name].facts["compile_seconds"] if again else None}


def infer(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """The encoder alone of each member, beside this device's ceiling."""
    return step(members, replace(options, task="infer"))


SCAN, UNROLLED, DOTS = {"scan": []}, {"unrolled": ["model.unroll=true"]}, {"rematerialised": ["model.remat=dots"]}
AS_INSTALLED = {"as installed": {"engine": "eager", "fast": False}}
EAGER, COMPILED = {"eager": {"engine": "eager", "fast": True}}, {"compiled": {"engine": "compile", "fast": True}}
EXPORTED = {"onnxruntime": {"engine": "onnxruntime", "fast": False}}


def ways(options: Options, dtype: str) -> tuple[dict[str, list[str]], dict[str, dict]]:
    """Our ways to do a piece of work, as settings, and theirs; only the fastest on an accelerator."""
    if options.device != "cpu":
        return SCAN, COMPILED
    ours = SCAN | UNROLLED | (DOTS if options.task == "train" else {})
    whole = dtype == "float32"
    exported = EXPORTED if whole and options.task == "infer" else {}
    return ours, (AS_INSTALLED if whole else {}) | EAGER | COMPILED | exported


def peers(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """The same work with transformers and torch (and onnxruntime): our best way first, then it and theirs in one run.

    Where our rows are packed, theirs are the same format padded, and what counts is the tokens that are no padding.
    """
    for member in members:
        form = member.phases[0].format
        with ExitStack() as stack:
            found = flat = stack.enter_context(ready(member, options))
            if isinstance(form, Packed):
                padded = replace(member, phases=(replace(member.phases[0], format=form.format),))
                flat = stack.enter_context(ready(padded, replace(options, text=True)))
            ours, others = ways(options, member.model.dtype)
            choices = {f"{member.name}, {name}": settings for name, settings in ours.items()}
            tried = options.run(*(found.variant(name, options, settings) for name, settings in choices.items()))
            if not tried:
                continue
            best = min(tried, key=lambda name: tried[name].steady())
            theirs = other_side(flat, others, options)
            timings = options.run(found.variant(best, options, choices[best]), *theirs)
        if best not in timings:
            continue
        for name in choices:
            if name in tried and name != best:
                yield timed(name, tried[name], found.tokens)
        mine = timings[best]
        yield timed(best, mine, found.tokens)
        for variant in theirs:
            if variant.name in timings:
                timing = timings[variant.name]
                times = ratio(timing, mine)
                row = timed(variant.name, timing, flat.tokens)
                yield row | {"ours is x times as fast": times and times * found.tokens / flat.tokens}


def other_side(found: Prepared, others: dict[str, dict], options: Options) -> list[Variant]:
    """The variants of other libraries for a member's batches."""
    experiment = found.experiment
    model, objective = experiment.model, experiment.objective
    architecture = architecture_of(experiment)
    path = Path(found.spec["inputs"]).with_name("peers.npz")
    facts = Facts.from_json(found.spec["facts"])
    inputs.save_for_peers(path, experiment, facts, inputs.load(found.spec["inputs"]))
    generator = objective.generator(model) if isinstance(objective, ReplacedTokens) else None
    shared = {
        "task": options.task,
        "family": architecture.name,
        "config": architecture.write(model),
        "generator": generator and architecture.write(generator),
        "pair": bool(objective.needs),
        "dtype": model.dtype,
        "device": options.torch_device,
        "threads": 1,
        "inputs": str(path),
    }
    return [
        Variant(f"{experiment.name}, transformers {name}", "theirs", shared | way, options.environment())
        for name, way in others.items()
    ]


def architecture_of(experiment: Experiment) -> Architecture:
    """The architecture of transformers that computes the same as an experiment's model."""
    model = experiment.model
    known = [ARCHITECTURES["electra"]] if isinstance(experiment.objective, ReplacedTokens) else ARCHITECTURES.values()
    for architecture in known:
        if not architecture.differing(model, max(model.position_offset - 1, 0)):
            return architecture
    raise ValueError(f"{experiment.name}: transformers has no architecture for this model")


SWITCHES = {
    "unrolled": ["model.unroll=true"],
    "products saved (remat dots)": ["model.remat=dots"],
    "all recomputed (remat full)": ["model.remat=full"],
    "no attention dropout": ["model.attention_dropout=0"],
    "no dropout": ["model.attention_dropout=0", "model.dropout=0"],
    "tanh in gelu": ["model.activation=gelu_tanh"],
    "no clipping": ["optimizer.clip=None"],
    "two micro-steps": ["accumulate=2"],
    "bfloat16": ["model.dtype=bfloat16"],
}


def ablate(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """One switch at a time, each beside the step without it in a run of the two."""
    for member in members:
        with ready(member, options) as found:
            for switch, settings in SWITCHES.items():
                pair = found.variant(member.name, options), found.variant(switch, options, settings)
                timings = options.run(*pair)
                if len(timings) == 2:
                    plain, other = timings.values()
                    row = timed(f"{member.name}, {switch}", other, found.tokens)
                    row |= {"temporary MB": other.facts.get("temporary_bytes", 0) / 1e6}
                    yield row | {"x as fast": ratio(plain, other)}


def ceiling(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """What this device can do at most: products of matrices in each dtype, and memory read and written."""
    spec = {"task": "copy", "bytes": 2**28}
    memory = Variant("memory", "ours", spec, options.environment())
    products = [product(dtype, options) for dtype in ("float32", "bfloat16")]
    settings = {"threads": 1, "fast": True, "device": options.torch_device}
    torch = [Variant(f"{each.name}, torch", "theirs", each.spec | settings, each.environment) for each in products]
    for name, timing in options.run(*products, *torch, memory).items():
        rate = timing.facts.get("flops", timing.facts.get("bytes")) / timing.seconds() / 1e9
        row = {"what": name, "rate": rate, "unit": "GB/s" if name == "memory" else "GFLOP/s"}
        yield row | {"spread": timing.spread(), "wall / cpu": timing.busy()}


# Dense bfloat16 FLOP/s and bytes/s of memory, as their makers print them.
DEVICES = {
    "A100 80GB": (312e12, 2.04e12),
    "H100 SXM": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "TPU v5e": (197e12, 0.82e12),
    "TPU v5p": (459e12, 2.77e12),
}


def roofline(members: Sequence[Experiment], options: Options) -> Iterator[Row]:
    """The least time of a step on known devices, from the configuration alone.

    Products run at the full rate; every saved activation is written and read forward, read backward, and its gradient
    written (4 passes); parameters, moments and gradients move 40 bytes each.
    """
    for member in members:
        phase = member.phases[0]
        tokens = phase.batch * phase.length
        flops = step_flops(member, np.array([phase.length])).sum() * phase.batch
        moved = 4 * tokens * sum(saved_values(m, phase.length) for m in member.objective.networks(member.model)) * 2
        moved += 40 * parameters(shapes(member.model, member.objective))
        for device, (peak, bandwidth) in DEVICES.items():
            products, memory = flops / peak, moved / bandwidth
            yield {
                "what": f"{member.name}, {phase.batch} x {phase.length}, {device}",
                "products ms": 1e3 * products,
                "memory ms": 1e3 * memory,
                "tokens/s at most": tokens / max(products, memory),
                "share without overlap": products / (products + memory),
            }


PARTS = {
    "step": step,
    "infer": infer,
    "data": measure,
    "peers": peers,
    "ceiling": ceiling,
    "roofline": roofline,
    "links": links,
    "ablate": ablate,
}
