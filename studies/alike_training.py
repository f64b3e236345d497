"""Another autoencoder, made and trained as one was, to compare it with."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch import Trainer

from datamodules import ActivationDataModule
from lightning_modules import ConvSAE
from networks import SAEBase


def train_alike(
    sae: SAEBase,
    data: ActivationDataModule,
    steps: int,
    seed: int,
    device: torch.device,
    *,
    random_decoder: bool = False,
) -> SAEBase:
    """Train a new autoencoder of the same kind, shape and training, as far as the given one's file says.

    Args:
        sae: the one that is taken after.
        data: with its tap.
        steps: of training.
        seed: of the new one's first weights.
        device: where.
        random_decoder: leave directions as they were drawn.
    """
    known = dict(sae.metadata.get("training", {}))
    accepted = inspect.signature(ConvSAE).parameters.keys() - {"tap", "expansion", "kernel_size", "in_channels"}
    own = {name: value for name, value in known.items() if name in accepted}
    shared = {"in_channels", "expansion", "kernel_size"}
    kind = partial(type(sae), **{k: v for k, v in sae.config().items() if k not in shared})
    if random_decoder:
        own |= {"resample_every": None}  # it would give latents other directions
    module = ConvSAE(
        tap=sae.tap,
        expansion=sae.expansion,
        kernel_size=sae.kernel_size,
        sae=partial(_drawn, kind, seed, not random_decoder),
        **(own | {"compile": not random_decoder}),
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return module.sae.to(device).eval().requires_grad_(False)


def _drawn(
    kind: Callable[[int, int, int], SAEBase],
    seed: int,
    learns_directions: bool,
    in_channels: int,
    expansion: int,
    kernel_size: int,
) -> SAEBase:
    """An autoencoder that is the same for a seed, whatever else was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = kind(in_channels, expansion, kernel_size)
    sae.decoder_weight.requires_grad_(learns_directions)
    return sae
