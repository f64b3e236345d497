"""What does the agent know, and where? Probes of every target at every tap, natural and deconfounded, on one page."""

import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm import tqdm

from datamodules import ProbeDataModule
from datamodules.probes import CONTROLS, PROBED_PLAY
from datamodules.recorder import PlaySettings
from environments import EnvironmentSettings
from environments.heist import ClassTarget, choose_targets, deconfound
from interpretability.probe_figures import ProbeResult
from interpretability.statistics import join_metrics
from lightning_modules import LinearProbe
from lightning_modules.sparse_probe import sparse_scores
from networks import DEFAULT_PRECISION, Precision, SAEBase, load_sae
from networks.linear_readout import Form
from studies.arguments import check_not_empty, check_not_negative
from studies.probe_page import TRANSFER, atlas_page, headline_table, heat_maps, scores_table, targets_table
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

_SIZES = (1, 4, 16)


class ProbeAtlas(Study):
    """Fits linear probes of every target at every tap, on natural play and on deconfounded states, and carries those of
    natural play over to deconfounded states.

    Writes the page `pages/probes.html`, heat maps `figures/DATA_FORM.png` and the tables `headline` (of each target the
    tap chosen on validation levels, and how far it lies above the pixels), `targets` (their oracles and what is right
    by chance), `probes` (every score with its controls) and `sparse`. Summary: `probe/DATA/FORM/TARGET/TAP/...` as the
    training of probes has it, `best` in the place of the tap chosen on validation levels, with
    `probe/DATA/FORM/TARGET/best/above_pixels`; DATA also `transfer`; with an autoencoder
    `probe/DATA/sparse/TARGET/UNITS_K/accuracy`: what k latents, or k raw channels of its tap, tell of a target of
    classes by their mean over the map.

    Args:
        agent: path of the agent's weights.
        sae: path of an autoencoder for sparse probing; null for none.
        taps: what is probed; null for all but each `NAME.pre` and `value`.
        targets: what is read; null for all.
        forms: of the features.
        deconfounded: also look at deconfounded states.
        distribution_mode: heist's difficulty.
        num_frames, validation_frames, test_frames: frames of each split, all of different levels.
        max_features: of a flattened map.
        random_agent: an agent with random weights as a control; takes as long as the agent itself.
        shuffled: shuffled labels as a control; another fit of the agent's taps.
        play: how natural frames are played.
        seed: of training frames and controls.
        precision: in which the agent runs.
        cache_dir: folder of recorded frames.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, an unknown tap or target, a number below 1, or a negative
            seed.
    """

    def __init__(
        self,
        agent: str,
        sae: str | None = None,
        taps: list[str] | None = None,
        targets: list[str] | None = None,
        forms: tuple[Form, ...] = ("flat", "position"),
        deconfounded: bool = True,
        distribution_mode: str = "easy",
        num_frames: int = 32_768,
        validation_frames: int = 8_192,
        test_frames: int = 12_288,
        max_features: int = 2_048,
        random_agent: bool = True,
        shuffled: bool = True,
        play: PlaySettings = PROBED_PLAY,
        seed: int = 0,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        check_not_empty({"taps": taps, "targets": targets})
        check_not_negative({"seed": seed})
        self.device = choose_device(device)
        data = partial(
            ProbeDataModule,
            agent,
            taps,
            environment=EnvironmentSettings(distribution_mode=distribution_mode),  # type: ignore[arg-type]
            num_frames=num_frames,
            validation_frames=validation_frames,
            test_frames=test_frames,
            max_features=max_features,
            controls=CONTROLS if random_agent else ("pixels", "pixels_pca"),
            play=play,
            precision=precision,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.data = {"natural": data(states=None)}
        if deconfounded:
            self.data["deconfounded"] = data(states=deconfound)
        self.name = agent
        self._module = partial(LinearProbe, targets, forms, shuffled, seed=seed)
        self._module()  # refuses unknown targets and forms
        agent_itself = self.data["natural"].agent.to(self.device)
        subjects = self.data["natural"].subjects
        self.sae: SAEBase | None = None
        if sae is not None:
            self.sae = load_sae(sae, agent_itself).to(self.device).requires_grad_(False)
            if self.sae.tap not in {subject.tap for subject in subjects}:
                raise ValueError(f"the autoencoder {sae} is of {self.sae.tap}, which taps leave out: add it there")
        self.targets = choose_targets(targets)

    def run(self) -> Report:
        """Fit, test, carry over, draw."""
        results: dict[str, list[ProbeResult]] = {}
        modules: dict[str, LinearProbe] = {}
        sparse: list[list[Cell]] = []
        summary: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.data.items():
                module = modules[name] = self._module()
                trainer = self._trainer(folder)
                trainer.fit(module, datamodule=data)
                trainer.test(module, datamodule=data, verbose=False)
                results[name] = module.results
                summary |= _summary(module.results, name)
                if self.sae is not None:
                    rows, numbers = self._sparse(name, data, self.sae)
                    sparse += rows
                    summary |= numbers
            if "deconfounded" in self.data:
                self._trainer(folder).test(modules["natural"], datamodule=self.data["deconfounded"], verbose=False)
                results[TRANSFER] = modules["natural"].results
                summary |= _summary(results[TRANSFER], "transfer")
        figures = heat_maps(results)
        tables = {
            "headline": headline_table(results),
            "targets": targets_table(self.targets, results),
            "probes": scores_table(results),
        }
        if sparse:
            tables["sparse"] = Table(["data", "target", "units", "k", "accuracy", "low", "high"], sparse, printed=False)
        return Report(
            summary,
            tables,
            {f"{data} {form}".replace(" ", "_"): each for data in figures for form, each in figures[data].items()},
            pages={"probes": atlas_page(self.name, results, figures, tables)},
        )

    def _sparse(self, name: str, data: ProbeDataModule, sae: SAEBase) -> tuple[list[list[Cell]], dict[str, float]]:
        """Accuracies of k latents and of k channels, for every target of classes."""
        count = sae.num_latents

        @torch.no_grad()
        def read(acts: Tensor) -> Tensor:
            """Means over the map of all latents, then of all channels."""
            acts = acts.to(self.device).float()
            both = torch.cat([sae.encode(acts), acts], 1)
            return both.flatten(2).mean(2) if both.ndim > 2 else both

        found = data.tap_features(sae.tap, read)
        units = {
            "latents": {split: each.activations[:, :count] for split, each in found.items()},
            "channels": {split: each.activations[:, count:] for split, each in found.items()},
        }
        rows: list[list[Cell]] = []
        summary: dict[str, float] = {}
        targets = [target for target in self.targets if isinstance(target, ClassTarget)]
        for target in tqdm(targets, desc=f"sparse probes, {name}", unit="target", leave=False):
            labels = {split: torch.as_tensor(target.read(each.labels)).long() for split, each in found.items()}
            if any(not (each >= 0).any() for each in labels.values()):
                continue
            for kind, features in units.items():
                splits: dict[str, tuple[Tensor, Tensor]] = {split: (features[split], labels[split]) for split in found}
                scores = sparse_scores(splits, found["test"].levels, len(target.classes), _SIZES)
                for k, score in scores.items():
                    accuracy = score.compute()["accuracy"]
                    rows.append([name, target.name, kind, k, *accuracy])
                    summary |= join_metrics({f"probe/{name}/sparse/{target.name}/{kind}_{k}/accuracy": accuracy})
        return rows, summary

    def _trainer(self, folder: str) -> Trainer:
        return Trainer(
            default_root_dir=folder,
            max_epochs=1,
            accelerator=self.device.type,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def _summary(results: Sequence[ProbeResult], data: str) -> dict[str, float]:
    found: dict[str, Any] = {}
    for result in results:
        found |= result.metrics(data)
    return join_metrics(found)
