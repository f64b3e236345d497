"""What does the agent know, and where? Probes of every target at every tap, natural and deconfounded, on one page."""

import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from datamodules import ProbeDataModule
from datamodules.probes import PROBED_PLAY
from datamodules.recorder import PlaySettings
from environments import EnvironmentSettings
from environments.heist import ClassTarget, choose_targets, deconfound
from interpretability.probe_figures import ProbeResult, draw_confusion, draw_heat_map
from interpretability.report_page import Section, report_page
from interpretability.statistics import join_metrics
from lightning_modules import LinearProbe
from lightning_modules.sparse_probe import sparse_scores
from networks import Precision, SAEBase, load_sae
from networks.linear_readout import Form
from studies.report import Cell, Report, Study, Table

_SIZES = (1, 4, 16)
_TRANSFER = "natural to deconfounded"
_EXPLANATIONS = {
    "natural": "Fitted and tested on the agent's own play. Colour, order and what is left to see are one and the same "
    "there, so that a probe may read one by another.",
    "deconfounded": "Fitted and tested on edited states in which colour, order, place and presence are independent.",
    _TRANSFER: "Fitted on natural play, tested on deconfounded states: what remains of a probe where its short cuts "
    "are gone.",
}


class ProbeAtlas(Study):
    """Fits linear probes of every target at every tap, on natural play and on deconfounded states, and carries those of
    natural play over to deconfounded states.

    Writes the page `pages/probes.html`, heat maps `figures/DATA_FORM.png` and the tables `probes` (every score with its
    controls) and `sparse`. Summary: `probe/DATA/FORM/TARGET/TAP/...` as the training of probes has it, `best` in the
    place of the tap chosen on validation levels, DATA also `transfer`; with an autoencoder
    `probe/DATA/sparse/TARGET/UNITS_K/accuracy`: what k latents, or k raw channels of its tap, tell of a target of
    classes by their mean over the map.

    Args:
        agent: path of the agent's weights.
        sae: path of an autoencoder for sparse probing; null for none.
        taps: what is probed; null for all behind a nonlinearity or a pool, and the logits.
        targets: what is read; null for all.
        forms: of the features.
        deconfounded: also look at deconfounded states.
        distribution_mode: heist's difficulty.
        num_frames, validation_frames, test_frames: frames of each split, all of different levels.
        max_features: of a flattened map.
        random_agent: an agent with random weights as a control; takes as long as the agent itself.
        shuffled: shuffled labels as a control.
        play: how natural frames are played.
        seed: of training frames and controls.
        precision: in which the agent runs.
        cache_dir: folder of recorded frames.

    Raises:
        ValueError: a file that is missing or does not fit, an unknown tap or target, a number below 1.
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
        shuffled: bool = False,
        play: PlaySettings = PROBED_PLAY,
        seed: int = 0,
        precision: Precision = "bf16",
        cache_dir: str = ".cache/activations",
    ) -> None:
        data = partial(
            ProbeDataModule,
            agent,
            taps,
            environment=EnvironmentSettings(distribution_mode=distribution_mode),  # type: ignore[arg-type]
            num_frames=num_frames,
            validation_frames=validation_frames,
            test_frames=test_frames,
            max_features=max_features,
            controls=("pixels", "random_agent") if random_agent else ("pixels",),
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
        agent_itself = self.data["natural"].agent
        subjects = self.data["natural"].subjects
        self.sae: SAEBase | None = None
        if sae is not None:
            self.sae = load_sae(sae, agent_itself).requires_grad_(False)
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
                trainer = _trainer(folder)
                trainer.fit(module, datamodule=data)
                trainer.test(module, datamodule=data, verbose=False)
                results[name] = module.results
                summary |= _summary(module.results, name)
                if self.sae is not None:
                    rows, numbers = self._sparse(name, data, self.sae)
                    sparse += rows
                    summary |= numbers
            if "deconfounded" in self.data:
                _trainer(folder).test(modules["natural"], datamodule=self.data["deconfounded"], verbose=False)
                results[_TRANSFER] = modules["natural"].results
                summary |= _summary(results[_TRANSFER], "transfer")
        figures = _heat_maps(results)
        tables = {"probes": _table(results)}
        if sparse:
            tables["sparse"] = Table(["data", "target", "units", "k", "accuracy", "low", "high"], sparse, printed=False)
        return Report(
            summary,
            tables,
            {f"{data} {form}".replace(" ", "_"): each for data in figures for form, each in figures[data].items()},
            pages={"probes": self._page(results, figures, tables)},
        )

    def _sparse(self, name: str, data: ProbeDataModule, sae: SAEBase) -> tuple[list[list[Cell]], dict[str, float]]:
        """Accuracies of k latents and of k channels, for every target of classes."""
        count = sae.num_latents

        @torch.no_grad()
        def read(acts: Tensor) -> Tensor:
            """Means over the map of all latents, then of all channels."""
            both = torch.cat([sae.encode(acts.float()), acts.float()], 1)
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

    def _page(
        self, results: dict[str, list[ProbeResult]], figures: dict[str, dict[str, Figure]], tables: dict[str, Table]
    ) -> str:
        sections = []
        for data, found in results.items():
            shown = [(f"{data} {form}: scores by target and tap", each) for form, each in figures[data].items()]
            shown += [
                (f"confusion of {each.target}", draw_confusion(each, f"{each.target} at {each.tap}, {each.form}"))
                for each in found
                if each.best and each.form == "flat" and each.confusion is not None
            ]
            sections.append(Section(data, [_EXPLANATIONS[data]], shown))
        for name, table in tables.items():
            sections.append(Section(f"table: {name}", (), (), table.columns, table.rows))
        text = [
            f"Agent {self.name}. A linear probe is fitted to the activations of a tap; what it reads on held-out test "
            "levels is shown with 95 % intervals over levels. A score means little by itself: it counts by how far it "
            "lies above what the controls read (the majority class, raw pixels, an agent with random weights, shuffled "
            "labels). The best tap is chosen on validation levels."
        ]
        return report_page("What the agent knows, and where", text, sections)


def _trainer(folder: str) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
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


def _heat_maps(results: dict[str, list[ProbeResult]]) -> dict[str, dict[str, Figure]]:
    """By data and form."""
    figures: dict[str, dict[str, Figure]] = {}
    for data, found in results.items():
        for form in dict.fromkeys(result.form for result in found):
            chosen = [result for result in found if result.form == form]
            figures.setdefault(data, {})[form] = draw_heat_map(chosen, f"{data}, form: {form}")
    return figures


def _table(results: dict[str, list[ProbeResult]]) -> Table:
    controls = list(dict.fromkeys(name for found in results.values() for each in found for name in each.controls))
    rows: list[list[Cell]] = []
    for data, found in results.items():
        for each in found:
            score = each.scores[each.headline]
            row: list[Cell] = [data, each.form, each.target, each.tap, each.headline, *score]
            row.append("yes" if each.best else "")
            rows.append([*row, *(each.controls[name].value if name in each.controls else "" for name in controls)])
    columns = ["data", "form", "target", "tap", "score", "value", "low", "high", "best tap"]
    return Table([*columns, *(f"control {name}" for name in controls)], rows, printed=False)
