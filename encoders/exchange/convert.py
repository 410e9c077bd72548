"""Published checkpoints in and out: a folder as transformers writes it ↔ a run of ours, exactly, without PyTorch.

Everything that does not fit is found before anything is written, and listed in one error. A run and a folder appear
whole or not at all.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.exchange import fairseq
from encoders.exchange.architectures import ARCHITECTURES, Architecture, has_different_groups
from encoders.exchange.published_folder import PublishedCheckpoint, build_label_config, read_transformers_folder
from encoders.exchange.tokenizer_files import read_tokenizer, write_tokenizer
from encoders.exchange.weights import CheckpointError, list_names, write_safetensors
from encoders.experiment import RunSpec
from encoders.model.config import EncoderConfig
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import build_run_record
from encoders.run.run import Run
from encoders.training import sharding, step
from encoders.training.checkpoint import save_params
from encoders.training.optimizer import flatten_with_paths, is_stacked, tree_paths
from encoders.training.sharding import Mesh
from encoders.utils.files import atomic_dir, write_json

LogFn = Callable[[str], None]
ReadLeaf = Callable[[], np.ndarray]
M_ARENA_MAX = -8  # of glibc's malloc.h


def import_checkpoint(
    folder: str | Path,
    run: str | Path,
    *,
    generator: str | Path | None = None,
    tokenizer_files: str | Path | None = None,
    log: LogFn = lambda line: None,
) -> None:
    """Make the published checkpoint in `folder` the run `run`, which must not exist yet.

    The folder is one of transformers, or fairseq's .pt file, or a folder that holds one. An ELECTRA discriminator may
    bring its `generator`: another such folder, or the one named generator inside its own. `tokenizer_files` names the
    tokenizer's files where they are elsewhere. Raises `CheckpointError`, a `ValueError`, that lists all that does not
    fit.

        import_checkpoint("bert-base-uncased", "runs/bert-base-uncased")
    """
    limit_malloc_arenas()
    folder, run = Path(folder), Path(run)
    if run.exists():
        raise CheckpointError(f"{run} exists; choose another name, or remove it")
    file = fairseq.find_fairseq_file(folder)
    main = fairseq.read_fairseq_checkpoint(file) if file else read_transformers_folder(folder)
    if generator is None and (folder / "generator" / "config.json").is_file():
        generator = folder / "generator"
    sources = (
        pair_electra_checkpoints(main, read_transformers_folder(Path(generator)))
        if generator
        else ImportSources(main.config, main.objective, {"": main})
    )
    tokenizer = read_tokenizer(Path(tokenizer_files or (file.parent if file else folder)))
    everywhere = Mesh(data=1, fsdp=-1)  # every device has its share of the parameters
    network = RunSpec(name=run.name, model=sources.config, objective=sources.objective, mesh=everywhere)
    shapes = sources.build_param_shapes(tokenizer.vocab)
    problems = sources.list_problems(shapes)
    if tokenizer.vocab.vocab_size > network.model.vocab_size:
        problems.append(
            f"the vocabulary has {tokenizer.vocab.vocab_size} entries and the word table "
            f"{network.model.vocab_size} rows"
        )
    if problems:
        raise CheckpointError(f"{folder} cannot be imported:\n  " + "\n  ".join(problems))
    mesh = network.mesh.build()
    with atomic_dir(run) as partial_run:
        tokenizer.save(partial_run)
        write_json(
            partial_run / "experiment.json", build_run_record(network, sources.fingerprint_files(), tokenizer.vocab)
        )
        params = jax.tree.map(sources.load_leaf, tree_paths(shapes), shapes, sharding.infer_shardings(shapes, mesh))
        save_params(partial_run / "checkpoints", params)
    log(f"{run}: {sources.config.num_layers} layers, {type(sources.objective).__name__}, {', '.join(shapes)}")


@dataclass(frozen=True)
class ImportSources:
    """One published checkpoint, or ELECTRA's two, as the parameters of one network.

    `parts` maps the first names of a path in our tree to the checkpoint that has it; "" is all the others. The leaves
    in `tied` are in both, and are taken from the first.
    """

    config: EncoderConfig
    objective: object
    checkpoint_by_part: dict[str, PublishedCheckpoint]
    tied_leaves: frozenset[str] = frozenset()

    def locate_leaf(self, path: str) -> tuple[PublishedCheckpoint, str]:
        """The checkpoint that holds the leaf at `path`, and the leaf's path there."""
        part, _, rest = path.partition("/")
        source = self.checkpoint_by_part.get(part, self.checkpoint_by_part[""])
        return source, f"encoder/{rest}" if part in ("discriminator", "generator") else path

    def build_param_shapes(self, vocab) -> dict:
        """Shapes of all parameters, and of a pooler that comes along without being part of the objective."""
        shapes = dict(jax.eval_shape(partial(step.init_params, 0, self.objective.module(self.config, vocab))))
        extra = self.checkpoint_by_part[""].heads - set(shapes)
        if "pooler" in extra:
            d, f32 = self.config.hidden_size, np.float32
            kernel, bias = jax.ShapeDtypeStruct((d, d), f32), jax.ShapeDtypeStruct((d,), f32)
            shapes["pooler"] = {"dense": {"kernel": kernel, "bias": bias}}
        return shapes

    def list_problems(self, shapes) -> list[str]:
        """What does not fit, a line each."""
        wanted = {source: {} for source in self.checkpoint_by_part.values()}
        for path, leaf in flatten_with_paths(shapes):
            source, there = self.locate_leaf(path)
            wanted[source][there] = leaf.shape
        line_prefix = lambda source: "generator: " if source is self.checkpoint_by_part.get("generator") else ""
        return [
            line_prefix(source) + line
            for source, shapes in wanted.items()
            for line in source.list_problems(shapes, self.tied_leaves)
        ]

    def load_leaf(self, path: str, leaf, sharding):
        """The leaf at `path`, read where it belongs: a device's share of it, a layer at a time."""
        source, there = self.locate_leaf(path)

        def read_shard(index) -> np.ndarray:
            if not is_stacked(path):
                return np.ascontiguousarray(source.read_leaf(there)[index])
            layers = range(*index[0].indices(leaf.shape[0]))
            size = (len(layers), *(len(range(*i.indices(n))) for i, n in zip(index[1:], leaf.shape[1:], strict=True)))
            stack = np.empty(size, np.float32)
            for place, layer in enumerate(layers):
                stack[place] = source.read_leaf(there, layer)[index[1:]]
            return stack

        # Not ahead of its copying: the arrays on their way would all be held twice.
        return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, read_shard))

    def fingerprint_files(self) -> str:
        """A fingerprint of the files that were read."""
        whole = hashlib.sha256()
        for _, source in sorted(self.checkpoint_by_part.items()):
            for path in source.files:
                with open(path, "rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]


def pair_electra_checkpoints(discriminator: PublishedCheckpoint, generator: PublishedCheckpoint) -> ImportSources:
    """ELECTRA's two networks as one; what they share is found by comparing their tables."""
    if discriminator.heads != {"replaced"} or generator.heads != {"tokens"}:
        raise CheckpointError(
            f"a discriminator and a generator have the parts replaced and tokens; these have "
            f"{', '.join(sorted(discriminator.heads))} and {', '.join(sorted(generator.heads))}"
        )
    there, here = generator.config, discriminator.config
    objective = ReplacedTokenDetection(
        generator_width=there.hidden_size / here.hidden_size, generator_depth=there.num_layers / here.num_layers
    )
    ours = objective.get_generator_config(here)
    differing = [
        f"{name} is {value} there and would be {ours.collect_computation_fields()[name]} here"
        for name, value in there.collect_computation_fields().items()
        if value != ours.collect_computation_fields()[name]
    ]
    if differing or there.vocab_size != here.vocab_size:
        differing += [f"vocab_size is {there.vocab_size} there and {here.vocab_size} here"] * (
            there.vocab_size != here.vocab_size
        )
        raise CheckpointError(f"the generator is not one that belongs to the discriminator: {'; '.join(differing)}")
    names = ["word/embedding", "position/embedding", "segment/embedding", "norm/scale", "norm/bias"]
    same = [name for name in names if discriminator.has_equal_leaf(generator, f"encoder/embed/{name}")]
    tie = "embeddings" if same == names else "tokens" if "word/embedding" in same else "none"
    tied = {"embeddings": names, "tokens": names[:1], "none": []}[tie]
    return ImportSources(
        here,
        replace(objective, tie=tie),
        {"": discriminator, "generator": generator, "tokens": generator},
        frozenset(f"encoder/embed/{name}" for name in tied),
    )


# Out ------------------------------------------------------------------------------------------------------------------


def export_run(run: str | Path, folder: str | Path, *, step: str = "latest", log: LogFn = lambda line: None) -> None:
    """Write the run `run` as a folder that transformers loads, which must not exist yet.

    ELECTRA's generator goes into the folder `generator` inside it. A pooler that no class of transformers has beside
    the other parts, such as that of a masked-token model, is left out, and `say` is told. Raises `CheckpointError` for
    what transformers has no class for.

        export_run("runs/mini-bert", "mini-bert")
    """
    limit_malloc_arenas()
    opened, folder = Run.open(Path(run)), Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another name, or remove it")
    _, params = opened.load_params(step)
    written = [
        (place, *build_hf_checkpoint(opened, model, tree)) for place, model, tree in split_networks(opened, params)
    ]
    with atomic_dir(folder) as partial_folder:
        for place, config, tensors, left in written:
            (partial_folder / place).mkdir(exist_ok=True)
            write_json(partial_folder / place / "config.json", config)
            write_safetensors(partial_folder / place / "model.safetensors", tensors)
            write_tokenizer(opened.tokenizer, partial_folder / place, opened.spec.model)
            log(f"{folder / place}: {config['architectures'][0]}" + (f" without the {left}" if left else ""))


def split_networks(run: Run, params: dict) -> Iterator[tuple[str, EncoderConfig, dict]]:
    """The networks of a run as transformers has them, one a folder: where, its model, its parameters."""
    model, objective = run.spec.model, run.spec.objective
    if not isinstance(objective, ReplacedTokenDetection):
        yield "", model, params
        return
    yield "", model, {"encoder": params["discriminator"], "replaced": params["replaced"]}
    if "generator" in params:
        theirs, encoder = params["discriminator"]["embed"], params["generator"]
        embed = theirs if objective.tie == "embeddings" else dict(encoder["embed"])
        embed |= {"word": theirs["word"]} if objective.tie == "tokens" else {}
        tree = {"encoder": encoder | {"embed": embed}, "tokens": params["tokens"]}
        yield "generator", objective.get_generator_config(model), tree


def build_hf_checkpoint(
    run: Run, encoder_config: EncoderConfig, params: dict
) -> tuple[dict, dict[str, tuple[tuple[int, ...], ReadLeaf]], str]:
    """config.json and the tensors of one network, and the parts left out.

    Raises `CheckpointError` where no architecture has it.
    """
    reasons = []
    for architecture in ARCHITECTURES.values():
        reason = explain_incompatibility(run, architecture, encoder_config, params)
        if reason is None:
            break
        reasons.append(f"{architecture.name}: {reason}")
    else:
        raise CheckpointError("transformers has no architecture for this run:\n  " + "\n  ".join(reasons))
    if "project" not in params["encoder"] and architecture.config_values.get("always_project"):
        eye = {
            "kernel": np.eye(encoder_config.hidden_size, dtype=np.float32),
            "bias": np.zeros(encoder_config.hidden_size, np.float32),
        }
        params = params | {"encoder": params["encoder"] | {"project": eye}}  # the identity: x stays what it is
    facts, found = run.vocab, frozenset(params) - {"encoder"}
    parts, name = architecture.choose_model_class(found)
    config = {"architectures": [name], "model_type": architecture.name} | architecture.build_hf_config(encoder_config)
    config |= {
        "pad_token_id": facts.pad_id,
        "bos_token_id": facts.cls_id,
        "eos_token_id": facts.sep_id,
        "dtype": "float32",
    }
    config |= build_label_config(architecture, run.spec.objective)
    tensors = {}
    for path, leaf in flatten_with_paths({part: params[part] for part in ("encoder", *parts)}):
        for i, (theirs, shape) in enumerate(architecture.list_hf_tensors(path, leaf.shape)):
            tensors[theirs] = shape, partial(to_hf_layout, path, leaf, i)
    return config, dict(sorted(tensors.items())), ", ".join(sorted(found - parts))


def to_hf_layout(path: str, leaf, layer: int) -> np.ndarray:
    """The leaf at `path`, or a layer of it, as transformers has it: kernels transposed."""
    one = np.asarray(leaf[layer] if is_stacked(path) else leaf)
    return one.T if path.endswith("/kernel") else one


def explain_incompatibility(run: Run, architecture: Architecture, config: EncoderConfig, params: dict) -> str | None:
    """Why `architecture` cannot have this network; None where it can."""
    try:
        differing = architecture.list_config_differences(config, run.vocab.pad_id)
    except ValueError as error:
        return str(error)
    if has_different_groups(config):
        return (
            f"it rounds {config.num_layers} layers in {config.num_groups} groups, with one in another group than here"
        )
    lacking = [path for path, _ in flatten_with_paths(params) if architecture.locate_leaf(path) is None]
    if differing or lacking:
        return f"it has no {list_names([*differing, *lacking])}"
    if config.activation != "gelu" and (fixed := [part for part in architecture.gelu_heads if part in params]):
        return f"its {fixed[0]} head has gelu and not {config.activation}"
    head = getattr(run.spec.objective, "head", architecture.classifier_head)
    return (
        None
        if head == architecture.classifier_head
        else f"its classifier is {architecture.classifier_head} and not {head}"
    )


def limit_malloc_arenas() -> None:
    """Let new threads of this process share one heap: glibc gives them several, and each keeps what it has freed.

    With BERT-large that was 0.1 to 0.4 GB, which differed from run to run. Other C libraries have no such heaps.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_ARENA_MAX, 1)
