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

from encoders.exchange import fairseq, tokenizer_files
from encoders.exchange.architectures import ARCHITECTURES, Architecture, groups_differ
from encoders.exchange.published_folder import Published, classes_in_config, read
from encoders.exchange.weights import CheckpointError, listed, write_safetensors
from encoders.experiment import Network
from encoders.model.config import Model
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.run.run import Run, record
from encoders.training import sharding, step
from encoders.training.checkpoint import save_params
from encoders.training.optimizer import leaves, paths, stacked
from encoders.training.sharding import Mesh
from encoders.utils.files import appearing, write_json

Say = Callable[[str], None]
Leaf = Callable[[], np.ndarray]
M_ARENA_MAX = -8  # of glibc's malloc.h


def import_checkpoint(
    folder: str | Path,
    run: str | Path,
    *,
    generator: str | Path | None = None,
    vocabulary: str | Path | None = None,
    say: Say = lambda line: None,
) -> None:
    """Make the published checkpoint in `folder` the run `run`, which must not exist yet.

    The folder is one of transformers, or fairseq's .pt file, or a folder that holds one. An ELECTRA discriminator may
    bring its `generator`: another such folder, or the one named generator inside its own. `vocabulary` names the
    tokenizer's files where they are elsewhere. Raises `CheckpointError`, a `ValueError`, that lists all that does not
    fit.

        import_checkpoint("bert-base-uncased", "runs/bert-base-uncased")
    """
    keep_one_heap()
    folder, run = Path(folder), Path(run)
    if run.exists():
        raise CheckpointError(f"{run} exists; choose another name, or remove it")
    file = fairseq.file_in(folder)
    main = fairseq.read(file) if file else read(folder)
    if generator is None and (folder / "generator" / "config.json").is_file():
        generator = folder / "generator"
    sources = pair(main, read(Path(generator))) if generator else Sources(main.model, main.objective, {"": main})
    tokenizer = tokenizer_files.read(Path(vocabulary or (file.parent if file else folder)))
    everywhere = Mesh(data=1, fsdp=-1)  # every device has its share of the parameters
    network = Network(name=run.name, model=sources.model, objective=sources.objective, mesh=everywhere)
    shapes = sources.shapes(tokenizer.facts)
    problems = sources.problems(shapes)
    if tokenizer.facts.size > network.model.vocab:
        problems.append(
            f"the vocabulary has {tokenizer.facts.size} entries and the word table {network.model.vocab} rows"
        )
    if problems:
        raise CheckpointError(f"{folder} cannot be imported:\n  " + "\n  ".join(problems))
    mesh = network.mesh.build()
    with appearing(run) as partial_run:
        tokenizer.save(partial_run)
        write_json(partial_run / "experiment.json", record(network, sources.digest(), tokenizer.facts))
        params = jax.tree.map(sources.load, paths(shapes), shapes, sharding.shardings(shapes, mesh))
        save_params(partial_run / "checkpoints", params)
    say(f"{run}: {sources.model.layers} layers, {type(sources.objective).__name__}, {', '.join(shapes)}")


@dataclass(frozen=True)
class Sources:
    """One published checkpoint, or ELECTRA's two, as the parameters of one network.

    `parts` maps the first names of a path in our tree to the checkpoint that has it; "" is all the others. The leaves
    in `tied` are in both, and are taken from the first.
    """

    model: Model
    objective: object
    parts: dict[str, Published]
    tied: frozenset[str] = frozenset()

    def of(self, path: str) -> tuple[Published, str]:
        """The checkpoint that holds the leaf at `path`, and the leaf's path there."""
        part, _, rest = path.partition("/")
        source = self.parts.get(part, self.parts[""])
        return source, f"encoder/{rest}" if part in ("discriminator", "generator") else path

    def shapes(self, facts) -> dict:
        """Shapes of all parameters, and of a pooler that comes along without being part of the objective."""
        shapes = dict(jax.eval_shape(partial(step.parameters, 0, self.objective.module(self.model, facts))))
        extra = self.parts[""].found - set(shapes)
        if "pooler" in extra:
            d, f32 = self.model.hidden, np.float32
            kernel, bias = jax.ShapeDtypeStruct((d, d), f32), jax.ShapeDtypeStruct((d,), f32)
            shapes["pooler"] = {"dense": {"kernel": kernel, "bias": bias}}
        return shapes

    def problems(self, shapes) -> list[str]:
        """What does not fit, a line each."""
        wanted = {source: {} for source in self.parts.values()}
        for path, leaf in leaves(shapes):
            source, there = self.of(path)
            wanted[source][there] = leaf.shape
        place = lambda source: "generator: " if source is self.parts.get("generator") else ""
        return [
            place(source) + line for source, shapes in wanted.items() for line in source.problems(shapes, self.tied)
        ]

    def load(self, path: str, leaf, sharding):
        """The leaf at `path`, read where it belongs: a device's share of it, a layer at a time."""
        source, there = self.of(path)

        def read(index) -> np.ndarray:
            if not stacked(path):
                return np.ascontiguousarray(source.tensor(there)[index])
            layers = range(*index[0].indices(leaf.shape[0]))
            size = (len(layers), *(len(range(*i.indices(n))) for i, n in zip(index[1:], leaf.shape[1:], strict=True)))
            stack = np.empty(size, np.float32)
            for place, layer in enumerate(layers):
                stack[place] = source.tensor(there, layer)[index[1:]]
            return stack

        # Not ahead of its copying: the arrays on their way would all be held twice.
        return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, read))

    def digest(self) -> str:
        """A fingerprint of the files that were read."""
        whole = hashlib.sha256()
        for _, source in sorted(self.parts.items()):
            for path in source.files:
                with open(path, "rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]


def pair(discriminator: Published, generator: Published) -> Sources:
    """ELECTRA's two networks as one; what they share is found by comparing their tables."""
    if discriminator.found != {"replaced"} or generator.found != {"tokens"}:
        raise CheckpointError(
            f"a discriminator and a generator have the parts replaced and tokens; these have "
            f"{', '.join(sorted(discriminator.found))} and {', '.join(sorted(generator.found))}"
        )
    there, here = generator.model, discriminator.model
    objective = ReplacedTokens(width=there.hidden / here.hidden, depth=there.layers / here.layers)
    ours = objective.generator(here)
    differing = [
        f"{name} is {value} there and would be {ours.computes()[name]} here"
        for name, value in there.computes().items()
        if value != ours.computes()[name]
    ]
    if differing or there.vocab != here.vocab:
        differing += [f"vocab is {there.vocab} there and {here.vocab} here"] * (there.vocab != here.vocab)
        raise CheckpointError(f"the generator is not one that belongs to the discriminator: {'; '.join(differing)}")
    names = ["word/embedding", "position/embedding", "segment/embedding", "norm/scale", "norm/bias"]
    same = [name for name in names if discriminator.same(generator, f"encoder/embed/{name}")]
    tie = "embeddings" if same == names else "tokens" if "word/embedding" in same else "none"
    tied = {"embeddings": names, "tokens": names[:1], "none": []}[tie]
    return Sources(
        here,
        replace(objective, tie=tie),
        {"": discriminator, "generator": generator, "tokens": generator},
        frozenset(f"encoder/embed/{name}" for name in tied),
    )


# Out ------------------------------------------------------------------------------------------------------------------


def export_run(run: str | Path, folder: str | Path, *, step: str = "latest", say: Say = lambda line: None) -> None:
    """Write the run `run` as a folder that transformers loads, which must not exist yet.

    ELECTRA's generator goes into the folder `generator` inside it. A pooler that no class of transformers has beside
    the other parts, such as that of a masked-token model, is left out, and `say` is told. Raises `CheckpointError` for
    what transformers has no class for.

        export_run("runs/mini-bert", "mini-bert")
    """
    keep_one_heap()
    opened, folder = Run.open(Path(run)), Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another name, or remove it")
    _, params = opened.params(step)
    written = [(place, *described(opened, model, tree)) for place, model, tree in networks(opened, params)]
    with appearing(folder) as partial_folder:
        for place, config, tensors, left in written:
            (partial_folder / place).mkdir(exist_ok=True)
            write_json(partial_folder / place / "config.json", config)
            write_safetensors(partial_folder / place / "model.safetensors", tensors)
            tokenizer_files.write(opened.tokenizer, partial_folder / place, opened.network.model)
            say(f"{folder / place}: {config['architectures'][0]}" + (f" without the {left}" if left else ""))


def networks(run: Run, params: dict) -> Iterator[tuple[str, Model, dict]]:
    """The networks of a run as transformers has them, one a folder: where, its model, its parameters."""
    model, objective = run.network.model, run.network.objective
    if not isinstance(objective, ReplacedTokens):
        yield "", model, params
        return
    yield "", model, {"encoder": params["discriminator"], "replaced": params["replaced"]}
    if "generator" in params:
        theirs, encoder = params["discriminator"]["embed"], params["generator"]
        embed = theirs if objective.tie == "embeddings" else dict(encoder["embed"])
        embed |= {"word": theirs["word"]} if objective.tie == "tokens" else {}
        tree = {"encoder": encoder | {"embed": embed}, "tokens": params["tokens"]}
        yield "generator", objective.generator(model), tree


def described(run: Run, model: Model, tree: dict) -> tuple[dict, dict[str, tuple[tuple[int, ...], Leaf]], str]:
    """config.json and the tensors of one network, and the parts left out.

    Raises `CheckpointError` where no architecture has it.
    """
    reasons = []
    for architecture in ARCHITECTURES.values():
        reason = obstacle(run, architecture, model, tree)
        if reason is None:
            break
        reasons.append(f"{architecture.name}: {reason}")
    else:
        raise CheckpointError("transformers has no architecture for this run:\n  " + "\n  ".join(reasons))
    if "project" not in tree["encoder"] and architecture.model.get("always_project"):
        eye = {"kernel": np.eye(model.hidden, dtype=np.float32), "bias": np.zeros(model.hidden, np.float32)}
        tree = tree | {"encoder": tree["encoder"] | {"project": eye}}  # the identity: x stays what it is
    facts, found = run.facts, frozenset(tree) - {"encoder"}
    parts, name = architecture.written(found)
    config = {"architectures": [name], "model_type": architecture.name} | architecture.write(model)
    config |= {"pad_token_id": facts.pad, "bos_token_id": facts.cls, "eos_token_id": facts.sep, "dtype": "float32"}
    config |= classes_in_config(architecture, run.network.objective)
    tensors = {}
    for path, leaf in leaves({part: tree[part] for part in ("encoder", *parts)}):
        for i, (theirs, shape) in enumerate(architecture.tensors(path, leaf.shape)):
            tensors[theirs] = shape, partial(published, path, leaf, i)
    return config, dict(sorted(tensors.items())), ", ".join(sorted(found - parts))


def published(path: str, leaf, layer: int) -> np.ndarray:
    """The leaf at `path`, or a layer of it, as transformers has it: kernels transposed."""
    one = np.asarray(leaf[layer] if stacked(path) else leaf)
    return one.T if path.endswith("/kernel") else one


def obstacle(run: Run, architecture: Architecture, model: Model, tree: dict) -> str | None:
    """Why `architecture` cannot have this network; None where it can."""
    try:
        differing = architecture.differing(model, run.facts.pad)
    except ValueError as error:
        return str(error)
    if groups_differ(model):
        return f"it rounds {model.layers} layers in {model.groups} groups, with one in another group than here"
    lacking = [path for path, _ in leaves(tree) if architecture.place(path) is None]
    if differing or lacking:
        return f"it has no {listed([*differing, *lacking])}"
    if model.activation != "gelu" and (fixed := [part for part in architecture.always_gelu if part in tree]):
        return f"its {fixed[0]} head has gelu and not {model.activation}"
    head = getattr(run.network.objective, "head", architecture.classifier)
    return None if head == architecture.classifier else f"its classifier is {architecture.classifier} and not {head}"


def keep_one_heap() -> None:
    """Let new threads of this process share one heap: glibc gives them several, and each keeps what it has freed.

    With BERT-large that was 0.1 to 0.4 GB, which differed from run to run. Other C libraries have no such heaps.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_ARENA_MAX, 1)
