"""Training loops of sparse autoencoders that `benchmarks.sae` compares, each built in a process of its own.

All minimise squared error summed over channels, plus for L1 a coefficient times the sum over latents of activation x
length of direction, averaged over inputs, with Adam at the same learning rate on the same batches. What else a library
does in a step (projections, clipping, counting dead latents) it does here too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS, LATENTS = 32, 128
CLIP = 1.0  # norm of ours' gradients, as both peers have it: the first ones, far larger, would slow Adam down for long


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        kind: "l1" or "topk".
        batch_size: activations a step.
        steps: of the whole training.
        coefficient: of L1.
        k: of TopK.
        learning_rate: Adam's, constant.
    """

    kind: str
    batch_size: int
    steps: int
    coefficient: float = 0.5
    k: int = 4
    learning_rate: float = 2e-3


def planted(rows: int, seed: int) -> Float[Tensor, "R C"]:
    """Mixtures of about 4 of 128 directions, each channel of variance about 1."""
    directions = F.normalize(torch.randn(LATENTS, CHANNELS, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = torch.Generator().manual_seed(seed)
    sizes = 0.5 + torch.rand(rows, LATENTS, generator=noise)
    active = torch.rand(rows, LATENTS, generator=noise) < 0.03
    mixed = (sizes * active) @ directions
    return (mixed - mixed.mean(0)) / 0.355


class Contestant(ABC):
    """One way to train; built for a case and a device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device

    @abstractmethod
    def step(self, acts: Float[Tensor, "B C"], index: int) -> None:
        """One optimiser step."""

    @abstractmethod
    def read(self, acts: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions [B C], latents [B F] and lengths of directions [F]."""

    @torch.no_grad()
    def final_loss(self, acts: Float[Tensor, "B C"]) -> float:
        """The loss on other activations, computed in float32."""
        reconstruction, latents, norms = self.read(acts)
        loss = (reconstruction - acts).square().sum(1).mean()
        if self.case.kind == "l1":
            loss = loss + self.case.coefficient * (latents * norms).sum(1).mean()
        return loss.item()


class Ours(Contestant):
    """What `ConvSAE` does in a step, without a Trainer."""

    def __init__(self, case: Case, device: torch.device) -> None:
        from lightning_modules.kernel_adam import KernelAdam
        from lightning_modules.sae_kernel import load_kernel
        from lightning_modules.sae_objective import SAEObjective
        from networks import FiringCounter, SAEBase, SparseAutoencoder, TopKSAE

        super().__init__(case, device)
        self.sae: SAEBase = (
            SparseAutoencoder(CHANNELS, 4, 1, case.coefficient, None, None, 0)
            if case.kind == "l1"
            else TopKSAE(CHANNELS, 4, 1, case.k)
        ).to(device)
        self.kernel = load_kernel(CHANNELS, LATENTS) if device.type == "cpu" else None
        self.objective = torch.compile(SAEObjective(self.sae, None, 1))
        self.firing = FiringCounter(LATENTS, 1_000_000).to(device)
        self.optimiser: torch.optim.Optimizer = (
            KernelAdam(self.kernel, self.sae, case.learning_rate)
            if self.kernel
            else torch.optim.Adam(self.sae.parameters(), lr=case.learning_rate, fused=True)
        )
        if isinstance(self.optimiser, KernelAdam):
            self.optimiser.largest_norm = CLIP

    def step(self, acts: Float[Tensor, "B C"], index: int) -> None:
        from lightning_modules.sae_kernel import kernel_parameters
        from networks import ProgressNow

        progress = ProgressNow(index, self.firing)
        terms = self.kernel.takes(self.sae, acts, progress) if self.kernel else None
        if self.kernel is not None and terms is not None:
            _, fired, gradients = self.kernel.run(self.sae, acts, terms)
            self.firing.update(fired, len(acts))
            for parameter, gradient in zip(kernel_parameters(self.sae), gradients, strict=True):
                parameter.grad = gradient
            self.optimiser.step()  # does the rest
            return
        loss, _, fired = self.objective(acts, progress.tensors())
        self.firing.update(fired, len(acts))
        self.optimiser.zero_grad()
        loss.backward()
        if self.sae.unit_norm_decoder:
            self.sae.project_decoder_gradient()
        nn.utils.clip_grad_norm_(self.sae.parameters(), CLIP)
        self.optimiser.step()
        if self.sae.unit_norm_decoder:
            self.sae.normalise_decoder()

    def read(self, acts: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.sae.encode(acts)
        return self.sae.decode(latents), latents, self.sae.decoder_norms()


class Trained(Ours):
    """The same through Lightning's Trainer, with TensorBoard and the callbacks that watch a training; it runs all
    steps at once (`fit`).
    """

    def fit(self, batches: Callable[[int], Float[Tensor, "B C"]], started: Callable[[int], None]) -> None:
        """Train, telling the number of each step that begins."""
        import tempfile

        from lightning.pytorch import Callback, LightningDataModule, Trainer

        from callbacks import DeadNeurons, Throughput
        from datamodules import ActivationBatch
        from datamodules.cache import Statistics
        from lightning_modules import ConvSAE
        from networks import CustomCNN, SparseAutoencoder, TopKSAE

        case, device = self.case, self.device

        class Loader:
            def __len__(self) -> int:
                return case.steps

            def __iter__(self) -> Iterator[ActivationBatch]:
                levels = torch.zeros(case.batch_size, dtype=torch.int64)
                for index in range(case.steps):
                    yield ActivationBatch({"tap": batches(index)}, levels)

        class Data(LightningDataModule):
            activation_shapes = {"tap": (CHANNELS,)}
            agent = CustomCNN()

            def statistics(self, tap: str) -> Statistics:
                return Statistics(torch.zeros(CHANNELS), torch.ones(()))

            def train_dataloader(self) -> Loader:
                return Loader()

        class Clock(Callback):
            def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
                started(batch_idx)

        def kind(channels: int, expansion: int, size: int) -> Any:
            if case.kind == "topk":
                return TopKSAE(channels, expansion, size, case.k)
            return SparseAutoencoder(channels, expansion, size, case.coefficient, None, None, 0)

        module = ConvSAE(
            "tap", sae=kind, learning_rate=case.learning_rate, warmup_steps=0, decay_fraction=0.0, resample_every=None
        )
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                default_root_dir=folder, accelerator=device.type, devices=1, max_steps=case.steps,
                limit_val_batches=0, log_every_n_steps=100, enable_model_summary=False, enable_checkpointing=False,
                gradient_clip_val=CLIP, callbacks=[Throughput(), DeadNeurons(every_n_steps=500), Clock()],
            ).fit(module, datamodule=Data())  # fmt: skip
        self.sae = module.sae


class Plain(Contestant):
    """The shortest loop in torch, eager and in float32."""

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.encoder = nn.Linear(CHANNELS, LATENTS).to(device)
        self.decoder = nn.Linear(LATENTS, CHANNELS).to(device)
        with torch.no_grad():
            self.decoder.weight.div_(self.decoder.weight.norm(dim=0))
            self.encoder.weight.copy_(self.decoder.weight.T)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=case.learning_rate)

    def step(self, acts: Float[Tensor, "B C"], index: int) -> None:
        reconstruction, latents, norms = self.read(acts)
        loss = (reconstruction - acts).square().sum(1).mean()
        if self.case.kind == "l1":
            loss = loss + self.case.coefficient * (latents * norms).sum(1).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def read(self, acts: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.encoder(acts).relu()
        if self.case.kind == "topk":
            largest = latents.topk(self.case.k, sorted=False)
            latents = torch.zeros_like(latents).scatter(1, largest.indices, largest.values)
        return self.decoder(latents), latents, self.decoder.weight.norm(dim=0)


class DictionaryLearning(Contestant):
    """dictionary_learning's StandardTrainer and TopKTrainer."""

    def __init__(self, case: Case, device: torch.device, autocast: bool = False, compiled: bool = False) -> None:
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer

        super().__init__(case, device)
        common: dict[str, Any] = {
            "steps": case.steps,
            "activation_dim": CHANNELS,
            "dict_size": LATENTS,
            "layer": 0,
            "lm_name": "",
            "lr": case.learning_rate,
            "warmup_steps": 0,
            "device": str(device),
        }
        self.trainer: Any = (
            StandardTrainer(l1_penalty=case.coefficient, sparsity_warmup_steps=None, **common)
            if case.kind == "l1"
            else TopKTrainer(k=case.k, **common)
        )
        if compiled:
            self.trainer.ae.compile()
        self.context = torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()

    def step(self, acts: Float[Tensor, "B C"], index: int) -> None:
        with self.context:
            self.trainer.update(index, acts)

    def read(self, acts: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor, Tensor]:
        reconstruction, latents = self.trainer.ae(acts, output_features=True)
        return reconstruction, latents, self.trainer.ae.decoder.weight.norm(dim=0)


class SAELens(Contestant):
    """sae-lens' SAETrainer with its standard and TopK autoencoders."""

    def __init__(self, case: Case, device: torch.device, autocast: bool = False, compiled: bool = False) -> None:
        from sae_lens import (
            StandardTrainingSAE,
            StandardTrainingSAEConfig,
            TopKTrainingSAE,
            TopKTrainingSAEConfig,
        )
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        super().__init__(case, device)
        sizes: dict[str, Any] = {"d_in": CHANNELS, "d_sae": LATENTS, "device": str(device)}
        sae: Any = (
            StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=case.coefficient, **sizes))
            if case.kind == "l1"
            else TopKTrainingSAE(TopKTrainingSAEConfig(k=case.k, **sizes))
        )
        config = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            total_training_samples=case.steps * case.batch_size, device=str(device), autocast=autocast,
            lr=case.learning_rate, lr_end=case.learning_rate, lr_scheduler_name="constant", lr_warm_up_steps=0,
            adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1,
            train_batch_size_samples=case.batch_size, dead_feature_window=1000, feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer: Any = SAETrainer(config, sae, iter([]))
        if compiled:
            sae.training_forward_pass = torch.compile(sae.training_forward_pass)

    def step(self, acts: Float[Tensor, "B C"], index: int) -> None:
        self.trainer.step(acts)
        self.trainer.n_training_steps += 1

    def read(self, acts: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor, Tensor]:
        sae = self.trainer.sae
        latents = sae.encode(acts)
        return sae.decode(latents), latents, sae.W_dec.norm(dim=1)


PEERS = {"dictionary_learning": DictionaryLearning, "sae_lens": SAELens}


def make(name: str, settings: dict[str, bool], case: Case, device: torch.device) -> Contestant:
    """A contestant by name.

    Raises:
        ModuleNotFoundError: a peer is not installed.
    """
    torch.manual_seed(0)
    if name in PEERS:
        return PEERS[name](case, device, **settings)
    return {"ours": Ours, "trained": Trained, "plain": Plain}[name](case, device)


def describe(case: Case) -> dict[str, Any]:
    """The case as plain values."""
    return asdict(case)
