"""Trains one autoencoder of `benchmarks.sae_frontier`: ours as its configuration says, the peers' by their trainers.

All have one schedule of the learning rate (a short rise, a fall to 0 over the last 30 %). The peers get what they do
best with: inputs of mean 0 and variance 1 as ours see them, and dead latents counted over as many inputs as ours, for
their own windows are longer than these runs.
"""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor

import networks
from datamodules import ActivationDataModule
from datamodules.cache import Statistics
from lightning_modules import ConvSAE
from networks import load_sae_lens

BATCH = 4_096
EXPANSION = 4
_WARMUP = 0.05  # part of the run in which the learning rate rises
_DECAY = 0.3  # part of the run in which it falls
_SPARSITY_WARMUP = 0.1  # part of the run in which a penalty rises
_DEAD_WINDOW = 1_000_000  # inputs
_OUR_FILES = [
    *(f"networks/{name}.py" for name in ("sae_base", "sae_losses", "sae_penalised")),
    *(f"networks/{name}.py" for name in ("sparse_autoencoder", "topk_sae", "batch_topk_sae")),
    *(f"lightning_modules/{name}.py" for name in ("conv_sae", "sae_objective", "sae_revival", "sae_training")),
    *(
        f"lightning_modules/{name}"
        for name in ("sae_kernel.py", "sae_kernel.cpp", "sae_kernel_tiles.h", "kernel_adam.py")
    ),
]
_OURS = {"log": "relu", "l1": "relu", "l1_free": "relu", "topk": "topk", "batch_topk": "batch_topk"}


class Coder(NamedTuple):
    """A trained autoencoder: latents of raw activations, and raw activations of latents."""

    encode: Callable[[Float[Tensor, "R C"]], Float[Tensor, "R F"]]
    decode: Callable[[Float[Tensor, "R F"]], Float[Tensor, "R C"]]


class Point(NamedTuple):
    """One autoencoder to train.

    Attributes:
        library: ours, dictionary_learning or sae_lens.
        kind: l1, topk or batch_topk; of ours also log, and l1_free: L1 with directions of any length.
        sparsity: weight of the penalty, or k.
        learning_rate: at its height.
    """

    tap: str
    library: str
    kind: str
    sparsity: float
    learning_rate: float
    steps: int


class Samples:
    """The same batches in the same order for everybody.

    Args:
        data: with a training cache of the tap.
        tap: whose activations.
    """

    def __init__(self, data: ActivationDataModule, tap: str) -> None:
        self.data, self.tap = data, tap
        self._start = data.state_dict()
        self.statistics: Statistics = data.statistics(tap)

    def rewind(self) -> ActivationDataModule:
        """The data module, about to yield its first batch."""
        self.data.load_state_dict(self._start)
        return self.data

    def normalised(self, steps: int) -> Iterator[Float[Tensor, "B C"]]:
        """So many batches from the first one on."""
        loader = self.rewind().train_dataloader()
        given = 0
        while given < steps:
            for batch in loader:
                yield self.normalise(batch.activations[self.tap])
                given += 1
                if given == steps:
                    return

    def normalise(self, acts: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
        """Mean 0 a channel, variance 1 on average."""
        return (acts.float() - self.statistics.mean) / self.statistics.std

    def raw(self, normal: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
        """The inverse of `normalise`."""
        return normal * self.statistics.std + self.statistics.mean


def train(point: Point, samples: Samples) -> Coder:
    """Train one point.

    Raises:
        ValueError: its library is not installed.
    """
    torch.manual_seed(0)
    if point.library == "ours":
        return _train_ours(point, samples)
    try:
        encode, decode = _PEERS[point.library](point, samples)
    except ImportError as error:
        raise ValueError(
            f"{point.library} cannot be imported ({error}): pip install -c constraints.txt -e '.[peers]'"
        ) from error
    return Coder(lambda acts: encode(samples.normalise(acts)), lambda latents: samples.raw(decode(latents)))


@functools.cache
def our_code() -> str:
    """A hash of the files that say how ours train: after a change of one, ours are trained anew."""
    root = Path(__file__).parents[1]
    return hashlib.sha256(b"\0".join((root / name).read_bytes() for name in _OUR_FILES)).hexdigest()[:16]


@functools.cache
def peer_version(library: str) -> str | None:
    """Of a peer: after a change of it, its points are trained anew. None where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def our_settings(point: Point) -> dict[str, Any]:
    """ConvSAE's arguments from the shipped configuration of the kind, at the point's sparsity, rate and length."""
    config = _OURS[point.kind]
    name = "sae_conv4" if config == "relu" else f"sae_conv4_{config}"
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    arguments = yaml.safe_load(path.read_text())["model"]["init_args"]
    own = arguments["sae"]["init_args"]
    if config == "relu":
        own |= {"sparsity_coefficient": point.sparsity, "sparsity_warmup_steps": round(_SPARSITY_WARMUP * point.steps)}
        own["unit_norm_decoder"] = point.kind != "l1_free"  # of the log penalty as much explained at a third less L0
    else:
        own["k"] = point.sparsity if config == "batch_topk" else int(point.sparsity)
    if point.kind in ("l1", "l1_free"):
        own |= {"sparsity_knee": None, "rare_frequency": None}
    # the others by the kernel alone: a library that dictionary_learning imports breaks torch.compile in this process
    compiled = config != "batch_topk"
    changes = {"learning_rate": point.learning_rate, "warmup_steps": round(_WARMUP * point.steps), "compile": compiled}
    return arguments | {"tap": point.tap, "expansion": EXPANSION} | changes


def _train_ours(point: Point, samples: Samples) -> Coder:
    arguments = our_settings(point)
    kind = arguments["sae"]
    make = functools.partial(getattr(networks, kind["class_path"].rpartition(".")[2]), **kind["init_args"])
    trainer = Trainer(
        max_steps=point.steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, log_every_n_steps=100,
    )  # fmt: skip
    module = ConvSAE(**(arguments | {"sae": make, "in_channels": None}))  # any agent's
    trainer.fit(module, datamodule=samples.rewind())
    sae = module.sae.eval()
    return Coder(sae.encode, sae.decode)


def _train_dictionary_learning(point: Point, samples: Samples) -> tuple[Any, Any]:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    channels, decay = len(samples.statistics.mean), round((1 - _DECAY) * point.steps)
    common: dict[str, Any] = {
        "steps": point.steps, "activation_dim": channels, "dict_size": EXPANSION * channels, "layer": 0,
        "lm_name": "heist", "lr": point.learning_rate, "warmup_steps": round(_WARMUP * point.steps),
        "decay_start": decay, "seed": 0, "device": "cpu",
    }  # fmt: skip
    if point.kind == "l1":
        rise = round(_SPARSITY_WARMUP * point.steps)
        trainer = StandardTrainer(**common, l1_penalty=point.sparsity, sparsity_warmup_steps=rise)
    else:
        kind = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[point.kind]
        # the running mean of 1 000 steps would not have settled in a short run
        trainer = kind(**common, k=int(point.sparsity), threshold_beta=0.99, threshold_start_step=decay)
        trainer.dead_feature_threshold = _DEAD_WINDOW
    for step, batch in enumerate(samples.normalised(point.steps)):
        trainer.update(step, batch)
    return trainer.ae.encode, trainer.ae.decode


def _train_sae_lens(point: Point, samples: Samples) -> tuple[Any, Any]:
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    channels = len(samples.statistics.mean)
    sizes: dict[str, Any] = {"d_in": channels, "d_sae": EXPANSION * channels}
    sae: Any
    if point.kind == "l1":
        rise = round(_SPARSITY_WARMUP * point.steps)
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(**sizes, l1_coefficient=point.sparsity, l1_warm_up_steps=rise)
        )
    elif point.kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=int(point.sparsity)))
    else:
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=point.sparsity))
    config = SAETrainerConfig(
        total_training_samples=point.steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=point.learning_rate,
        lr_end=point.learning_rate,
        lr_warm_up_steps=round(_WARMUP * point.steps),
        lr_decay_steps=round(_DECAY * point.steps),
        dead_feature_window=_DEAD_WINDOW // BATCH,
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    for batch in samples.normalised(point.steps):
        trainer.step(batch)
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        trained = load_sae_lens(folder)
    return trained.encode, trained.decode


_PEERS = {"dictionary_learning": _train_dictionary_learning, "sae_lens": _train_sae_lens}
