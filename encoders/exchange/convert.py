"""Import and export of published checkpoints: a folder of transformers ↔ a run, bit-exact and without PyTorch.

All problems are found before anything is written, and listed in one error. Runs and folders appear atomically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.exchange import fairseq
from encoders.exchange.published_folder import PublishedCheckpoint, build_label_config, read_transformers_folder
from encoders.exchange.sentence_transformers import (
    MODULES_FILE,
    DenseCheckpoint,
    read_dense_checkpoint,
    read_modules,
    read_sentence_embedding,
    write_sentence_embedding,
)
from encoders.exchange.tokenizer_files import read_tokenizer, write_tokenizer
from encoders.exchange.weights import CheckpointError, IgnoredNames, list_names, write_safetensors
from encoders.experiment import RunSpec
from encoders.families.architecture import Architecture, has_different_groups
from encoders.families.registry import ARCHITECTURES
from encoders.inference.sentence_embedding import DENSE_PARAMS, ENCODER_PARAMS, SentenceEmbedding
from encoders.model.config import EncoderConfig
from encoders.model.encoder import is_stacked, merge_word_tables
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import CHECKPOINTS_FOLDER, build_run_record, read_run_record, write_run_record
from encoders.run.run import Run
from encoders.text.tokenization import VocabInfo
from encoders.training import sharding, step
from encoders.training.checkpoint import save_params
from encoders.training.optimizer import flatten_with_paths, tree_paths
from encoders.training.sharding import Mesh
from encoders.utils.buckets import check_local_paths
from encoders.utils.files import atomic_dir, write_json
from encoders.utils.machine import limit_malloc_arenas

LogFn = Callable[[str], None]
HFTensors = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]  # name → shape, function that reads the values
EMBEDDING_LEAVES = ("word/embedding", "position/embedding", "segment/embedding", "norm/scale", "norm/bias")


def import_checkpoint(
    folder: str | Path,
    run: str | Path,
    *,
    generator: str | Path | None = None,
    tokenizer_files: str | Path | None = None,
    ignored: Sequence[str] = (),
    log: LogFn = lambda line: None,
) -> None:
    """Convert the published checkpoint in `folder` to a new run in the folder `run`.

    `folder` is one of transformers, fairseq's .pt file, or a folder with one such file. `generator` is the folder of an
    ELECTRA discriminator's generator, by default the folder "generator" inside its own. `tokenizer_files` is the folder
    of the tokenizer's files, by default that of the weights. `ignored` are patterns of tensors, and of modules of
    sentence-transformers, to leave out. Raises `CheckpointError`, a `ValueError`, that lists every problem.
    """
    limit_malloc_arenas()
    check_local_paths(*(str(path) for path in (folder, run, generator, tokenizer_files) if path))
    folder, run, ignored = Path(folder), Path(run), IgnoredNames(tuple(ignored))
    if run.exists():
        raise CheckpointError(f"{run} exists; choose another name, or remove it")
    fairseq_file = fairseq.find_fairseq_file(folder)
    if fairseq_file:
        checkpoint = fairseq.read_fairseq_checkpoint(fairseq_file, ignored)
    else:
        checkpoint = read_transformers_folder(folder, ignored, log)
    if generator is None and (folder / "generator" / "config.json").is_file():
        generator = folder / "generator"
    if generator is None:
        sources = ImportSources(checkpoint.config, checkpoint.objective, {"": checkpoint})
    else:
        sources = pair_electra_checkpoints(checkpoint, read_transformers_folder(Path(generator), ignored, log))
    tokenizer = read_tokenizer(Path(tokenizer_files or (fairseq_file.parent if fairseq_file else folder)), log)
    embedding = read_sentence_embedding(folder, tokenizer.lowers_text, ignored)
    if dense := read_dense_checkpoint(folder, checkpoint.config.hidden_size, ignored):
        sources.checkpoint_by_module[DENSE_PARAMS] = dense
    for pattern in find_unmatched(ignored, folder):
        log(f"--ignore {pattern} matches no tensor, and no module of sentence-transformers")
    # Parameters are read into a mesh of all devices, each of which holds its share.
    spec = RunSpec(name=run.name, model=sources.config, objective=sources.objective, mesh=Mesh(data=1, fsdp=-1))
    shapes = sources.build_param_shapes(tokenizer.vocab)
    embedding.get_vector_size(sources.config, shapes)  # raises for a size above the numbers of a vector
    problems = sources.list_problems(shapes)
    if problem := spec.model.find_vocabulary_problem(tokenizer.vocab):
        problems.append(problem)
    if problems:
        raise CheckpointError(f"{folder} cannot be imported:\n  " + "\n  ".join(problems))
    shardings = sharding.infer_shardings(shapes, spec.mesh.build())
    with atomic_dir(run) as partial_run:
        tokenizer.save(partial_run)
        fingerprint = sources.fingerprint_files()
        record = build_run_record(spec, fingerprint, tokenizer.vocab)
        write_run_record(partial_run, record | embedding.to_record())
        params = jax.tree.map(sources.load_leaf, tree_paths(shapes), shapes, shardings)
        save_params(partial_run / CHECKPOINTS_FOLDER, params, fingerprint)
    for checkpoint in sources.checkpoint_by_module.values():
        if checkpoint.unread:
            log(f"{checkpoint.files[0].parent}: not read: {list_names(checkpoint.unread)}")
    log(f"{run}: {sources.config.num_layers} layers, {type(sources.objective).__name__}, {', '.join(shapes)}")
    if embedding != SentenceEmbedding():
        log(f"{run}: vectors of sentence-transformers: {embedding.describe_settings()}")


def find_unmatched(ignored: IgnoredNames, folder: Path) -> list[str]:
    """Return the patterns that match no name of a tensor that was read, and none of sentence-transformers' files."""
    names = {"similarity_fn_name"}.union(*read_modules(folder)) if (folder / MODULES_FILE).is_file() else set()
    unmatched = [pattern for pattern in ignored if pattern not in ignored.matched]
    return [pattern for pattern in unmatched if not any(fnmatchcase(name, pattern) for name in names)]


@dataclass(frozen=True)
class ImportSources:
    """One published checkpoint, or ELECTRA's two, as the parameters of one module.

    `checkpoint_by_module` maps top-level modules of our tree to the checkpoint that holds them; "" is the default.
    Both checkpoints may hold the leaves in `tied_leaves`, which are read from the default one. The dense layers of
    sentence-transformers are a checkpoint of their own.
    """

    config: EncoderConfig
    objective: object
    checkpoint_by_module: dict[str, PublishedCheckpoint | DenseCheckpoint]
    tied_leaves: tuple[str, ...] = ()

    def locate_leaf(self, path: str) -> tuple[PublishedCheckpoint, str]:
        """Return the checkpoint that holds the leaf at `path`, and the leaf's path in it."""
        module, _, inner_path = path.partition("/")
        checkpoint = self.checkpoint_by_module.get(module, self.checkpoint_by_module[""])
        return checkpoint, f"encoder/{inner_path}" if module in ("discriminator", "generator") else path

    def build_param_shapes(self, vocab) -> dict:
        """Return shapes of all parameters, with heads that the checkpoint has and the objective lacks."""
        shapes = step.eval_module_shapes(self.objective.module(self.config, vocab))
        main, width = self.checkpoint_by_module[""], self.config.hidden_size
        if "pooler" in main.heads and "pooler" not in shapes:
            shapes["pooler"] = {"dense": build_dense_shapes(width, width)}
        for head, count_features in main.architecture.kept_heads.items():
            if head in main.heads:
                shapes[head] = build_dense_shapes(*count_features(self.config))
        if DENSE_PARAMS in self.checkpoint_by_module:
            shapes[DENSE_PARAMS] = self.checkpoint_by_module[DENSE_PARAMS].build_param_shapes()
        return shapes

    def list_problems(self, shapes) -> list[str]:
        """Return a line for everything that does not fit the parameters of these shapes."""
        wanted = {checkpoint: {} for checkpoint in self.checkpoint_by_module.values()}
        for path, leaf in flatten_with_paths(shapes):
            checkpoint, inner_path = self.locate_leaf(path)
            wanted[checkpoint][inner_path] = leaf.shape
        problems = []
        for checkpoint, leaf_shapes in wanted.items():
            prefix = "generator: " if checkpoint is self.checkpoint_by_module.get("generator") else ""
            problems += [prefix + line for line in checkpoint.list_problems(leaf_shapes, self.tied_leaves)]
        return problems

    def load_leaf(self, path: str, leaf, leaf_sharding):
        """Read the leaf at `path` onto its devices: each device's shard of it, a layer at a time."""
        checkpoint, inner_path = self.locate_leaf(path)

        def read_shard(index) -> np.ndarray:
            if not is_stacked(path):
                return np.ascontiguousarray(checkpoint.read_leaf(inner_path)[index])
            layers = range(*index[0].indices(leaf.shape[0]))
            size = (len(layers), *(len(range(*i.indices(n))) for i, n in zip(index[1:], leaf.shape[1:], strict=True)))
            stack = np.empty(size, np.float32)
            for i, layer in enumerate(layers):
                stack[i] = checkpoint.read_leaf(inner_path, layer)[index[1:]]
            return stack

        # Wait for the copy to the device: otherwise host copies of all leaves would be held at once.
        return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, leaf_sharding, read_shard))

    def fingerprint_files(self) -> str:
        """Return a fingerprint of the files that were read."""
        digest = hashlib.sha256()
        for _, checkpoint in sorted(self.checkpoint_by_module.items()):
            for path in checkpoint.files:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def build_dense_shapes(num_inputs: int, num_outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a dense layer's parameters."""
    kernel, bias = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((num_inputs, num_outputs), (num_outputs,)))
    return {"kernel": kernel, "bias": bias}


def pair_electra_checkpoints(discriminator: PublishedCheckpoint, generator: PublishedCheckpoint) -> ImportSources:
    """Combine ELECTRA's two networks; the embeddings that they share are found by comparison.

    Raises `CheckpointError` for networks that are not a pair.
    """
    if discriminator.heads != {"replaced"} or generator.heads != {"tokens"}:
        raise CheckpointError(
            f"a discriminator must have the head replaced and a generator the head tokens; these have "
            f"{', '.join(sorted(discriminator.heads))} and {', '.join(sorted(generator.heads))}"
        )
    config = discriminator.config
    objective = ReplacedTokenDetection(
        generator_width=generator.config.hidden_size / config.hidden_size,
        generator_depth=generator.config.num_layers / config.num_layers,
    )
    published, derived = (
        encoder.collect_computation_fields() | {"vocab_size": encoder.vocab_size}
        for encoder in (generator.config, objective.get_generator_config(config))
    )
    differences = [
        f"{name}={value!r} must be {derived[name]!r}" for name, value in published.items() if value != derived[name]
    ]
    if differences:
        raise CheckpointError(f"the generator does not belong to the discriminator: {'; '.join(differences)}")
    leaves = [leaf for leaf in EMBEDDING_LEAVES if discriminator.architecture.find_hf_leaf(f"encoder/embed/{leaf}")]
    equal_leaves = [leaf for leaf in leaves if discriminator.has_equal_leaf(generator, f"encoder/embed/{leaf}")]
    tie, tied_leaves = "none", ()
    if "word/embedding" in equal_leaves:
        tie, tied_leaves = "tokens", ("word/embedding",)
    if equal_leaves == leaves:
        tie, tied_leaves = "embeddings", leaves
    return ImportSources(
        config,
        replace(objective, tie=tie),
        {"": discriminator, "generator": generator, "tokens": generator},
        tuple(f"encoder/embed/{leaf}" for leaf in tied_leaves),
    )


def export_run(run: str | Path, folder: str | Path, *, step: str = "latest", log: LogFn = lambda line: None) -> None:
    """Write the run in the folder `run` as a new folder that transformers loads.

    ELECTRA's generator is written to the folder "generator" inside it. Heads that no class of transformers holds
    together, such as the pooler of a masked language model, are left out and logged. Raises `CheckpointError` for a
    network that transformers cannot represent.
    """
    limit_malloc_arenas()
    check_local_paths(str(folder))
    opened, folder = Run.open(run), Path(folder)
    spec = opened.spec
    embedding, config = SentenceEmbedding.choose_settings(read_run_record(opened.folder), spec.objective), spec.model
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another name, or remove it")
    params = merge_word_tables(opened.load_params(step)[1])
    dense_params = params.pop(DENSE_PARAMS, {})
    checkpoints = [
        (name, *build_hf_checkpoint(spec, opened.vocab, *network)) for name, *network in split_networks(spec, params)
    ]
    with atomic_dir(folder) as partial_folder:
        for subfolder, hf_config, tensors, omitted in checkpoints:
            path = partial_folder / subfolder
            path.mkdir(exist_ok=True)
            write_json(path / "config.json", hf_config)
            write_safetensors(path / "model.safetensors", tensors)
            write_tokenizer(opened.tokenizer, path, config)
            if embedding != SentenceEmbedding() and not subfolder:  # a generator's vectors are not used
                write_sentence_embedding(embedding, path, config.hidden_size, config.max_positions, dense_params)
            omission = f" without the {omitted}" if omitted else ""
            log(f"{folder / subfolder}: {hf_config['architectures'][0]}{omission}")


def describe_export(spec: RunSpec, pad_id: int, shapes: dict) -> str:
    """Return the classes of transformers that hold a run with parameters of these shapes, or why none does."""
    try:
        networks = list(split_networks(spec, jax.eval_shape(merge_word_tables, shapes)))
        described = []
        for _, config, params in networks:
            _, (heads, class_name) = choose_model_class(spec, pad_id, config, params)
            omitted = sorted(params.keys() - {"encoder", *heads})
            described.append(class_name + (f" without {' and '.join(omitted)}" if omitted else ""))
    except CheckpointError as error:
        return f"cannot be exported: {error}"
    return f"exports as {' and '.join(described)}"


def split_networks(spec: RunSpec, params: dict) -> Iterator[tuple[str, EncoderConfig, dict]]:
    """Yield subfolder, encoder and parameters of each network that transformers has a folder of its own for.

    The parameters are those of `merge_word_tables`.
    """
    config, objective = spec.model, spec.objective
    if not isinstance(objective, ReplacedTokenDetection):
        yield "", config, params
        return
    yield "", config, {"encoder": params["discriminator"], "replaced": params["replaced"]}
    if "generator" in params:
        generator, tables = params["generator"], params["discriminator"]["embed"]
        tied_tables = {"embeddings": tables, "tokens": {"word": tables["word"]}}.get(objective.tie, {})
        encoder = generator | {"embed": generator.get("embed", {}) | tied_tables}
        yield "generator", objective.get_generator_config(config), {"encoder": encoder, "tokens": params["tokens"]}


def choose_model_class(
    spec: RunSpec, pad_id: int, config: EncoderConfig, params: dict
) -> tuple[Architecture, tuple[tuple[str, ...], str]]:
    """Return the architecture of a network, and the heads and the name of the class that holds most of its heads.

    Of an objective that trains vectors, parameters that only training reads need no place there. Raises
    `CheckpointError` where no class holds the network, or no module of sentence-transformers its pooling.
    """
    if hasattr(spec.objective, "embedding_settings"):
        if "attention_pooler" in params:
            accepted = "accepted are cls, mean, last and pooled"
            raise CheckpointError(f"sentence-transformers lacks a module for pooling='attention'; {accepted}")
        params = {name: tree for name, tree in params.items() if name in ENCODER_PARAMS}
    architecture, heads = find_architecture(spec, pad_id, config, params), frozenset(params) - {"encoder"}
    writable = [row for row in architecture.model_classes if heads.issuperset(row[0])]
    written_heads, class_name = max(writable, key=lambda row: len(row[0]))
    return architecture, ((*written_heads, *heads.intersection(architecture.kept_heads)), class_name)


def build_hf_checkpoint(
    spec: RunSpec, vocab: VocabInfo, config: EncoderConfig, params: dict
) -> tuple[dict, HFTensors, str]:
    """Return config.json and the tensors of one network, and the names of its heads that are left out.

    Raises `CheckpointError` where no architecture represents it.
    """
    architecture, (written_heads, class_name) = choose_model_class(spec, vocab.pad_id, config, params)
    if "project" not in params["encoder"] and architecture.fixed_fields.get("always_project"):
        width = config.hidden_size
        identity = {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
        params = params | {"encoder": params["encoder"] | {"project": identity}}
    heads = frozenset(params) - {"encoder"}
    hf_config = {
        "architectures": [class_name],
        "model_type": architecture.name,
        **architecture.build_hf_config(config),
        "pad_token_id": vocab.pad_id,
        "bos_token_id": vocab.cls_id,
        "eos_token_id": vocab.sep_id,
        **{name: getattr(vocab, field) for name, field in architecture.token_id_fields},
        "dtype": "float32",
        **build_label_config(architecture, spec.objective),
    }
    buffers = architecture.write_buffers(config)
    tensors = {name: (values.shape, partial(np.asarray, values)) for name, values in buffers.items()}
    for path, leaf in flatten_with_paths({module: params[module] for module in ("encoder", *written_heads)}):
        for layer, (name, shape) in enumerate(architecture.list_hf_tensors(path, leaf.shape)):
            tensors[name] = shape, partial(to_hf_layout, path, leaf, layer)
    return hf_config, dict(sorted(tensors.items())), ", ".join(sorted(heads.difference(written_heads)))


def to_hf_layout(path: str, leaf, layer: int) -> np.ndarray:
    """Return the leaf at `path`, or one layer of a stack, in transformers' layout: kernels are transposed."""
    values = np.asarray(leaf[layer] if is_stacked(path) else leaf)
    return values.T if path.endswith("/kernel") else values


def find_architecture(spec: RunSpec, pad_id: int, config: EncoderConfig, params: dict) -> Architecture:
    """Return the first architecture that represents a network. Raises `CheckpointError` with the reason of the
    family's own one, or else of each."""
    reasons = {}
    for name, architecture in ARCHITECTURES.items():
        reasons[name] = explain_incompatibility(spec, pad_id, architecture, config, params)
        if reasons[name] is None:
            return architecture
    named = {config.conventions.name} & {*reasons} or reasons
    explained = "; ".join(f"{name}: {reasons[name]}" for name in named)
    raise CheckpointError(f"no architecture of transformers represents this run; {explained}")


def explain_incompatibility(
    spec: RunSpec, pad_id: int, architecture: Architecture, config: EncoderConfig, params: dict
) -> str | None:
    """Return why `architecture` cannot represent this network, or None."""
    try:
        differences = architecture.list_config_differences(config, pad_id)
    except ValueError as error:
        return str(error)
    if has_different_groups(config):
        return f"it divides {config.num_layers} layers into other groups than num_groups={config.num_groups} does here"
    differences += [path for path, _ in flatten_with_paths(params) if architecture.find_hf_leaf(path) is None]
    if differences:
        offset = architecture.get_position_offset(pad_id)
        is_shifted = offset != config.position_offset
        hint = f"; its positions start at {offset}, which needs model.position_offset={offset}" if is_shifted else ""
        hint += f": one more than the vocabulary's padding id {pad_id}" if is_shifted and offset else ""
        return f"it does not have {list_names(differences)}{hint}"
    gelu_heads = [head for head in architecture.gelu_heads if head in params]
    if config.activation != "gelu" and gelu_heads:
        return f"its {gelu_heads[0]} head has gelu and not {config.activation}"
    head = getattr(spec.objective, "head", architecture.classifier_head)
    if head != architecture.classifier_head:
        return f"its classifier is {architecture.classifier_head} and not {head}"
    token_head = getattr(spec.objective, "token_head", architecture.token_classifier_head)
    if token_head != architecture.token_classifier_head:
        return f"its classifier of tokens is {architecture.token_classifier_head} and not {token_head}"
    return None
