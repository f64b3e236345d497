"""How good are saved autoencoders? What each explains and how sparsely, and how the agent plays with it spliced in."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from datamodules import ActivationDataModule
from environments import EnvironmentSettings, VectorEnvironment, held_out_levels
from environments.procgen import DistributionMode
from interpretability.episodes import GAME_TIME_OUT
from interpretability.seed_stability import seed_cosines
from interpretability.splice import check_ablated_levels, evaluate_splices
from interpretability.statistics import bracketed
from lightning_modules.sae_validation import SAENumbers, SAEValidation
from networks import DEFAULT_PRECISION, Precision, SAEBase, load_network, load_sae
from studies.arguments import check_at_least_one, check_files, check_not_negative
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

_BATCH = 128  # frames: an early tap's maps of 64 x 64 take half a gigabyte with their latents

# metric -> heading
_DICTIONARY = {
    "sae/latents": "latents",
    "sae/l0": "L0",
    "sae/l0_raw": "raw L0",
    "sae/explained_variance": "explained variance",
    "sae/explained_variance_least_channel": "of the least channel",
    "sae/channel_cosine": "cosine to channels",
    "sae/effective_latents": "effective latents",
    "sae/dead_fraction": "dead",
    "sae/almost_dead_fraction": "almost dead",
    "sae/duplicate_fraction": "duplicates",
    "sae/seed_cosine": "cosine to seeds",
}
_SPLICE = {
    "splice/return_ratio": "return ratio",
    "splice/action_agreement": "action agreement",
    "splice/kl": "KL",
    "splice/clean_return": "clean return",
    "splice/return": "return",
    "splice/mean_ablation_return": "mean-ablated",
    "splice/zero_ablation_return": "zero-ablated",
    "splice/recovered": "recovered",
}


class EvaluateSAE(Study):
    """Measures saved autoencoders as their training's end does, several side by side: of one or of several taps.

    Statistics are over frames of validation levels (the cache of validation frames that training with as many of them
    records, too); the splice is played on the first `num_levels` of a split, every arm with the same action noise,
    untouched play once for all and the two ablations once a tap.

    Summary: `sae/...` as `lightning_modules.ConvSAE` logs them (`sae/explained_variance`, `sae/l0`, `sae/l0_raw`,
    `sae/dead_fraction`, `sae/almost_dead_fraction`, `sae/duplicate_fraction`, ...), `sae/latents`, and `splice/...` as
    in `interpretability.SpliceResult`, with 95 % bounds over levels. Where files share tap, kind and all settings
    (other seeds, then), `sae/seed_cosine`: `interpretability.seed_stability.seed_cosines` over the validation frames.
    With several files it is `sae/NAME/...` and `splice/NAME/...`; NAME is the file's, with as many of its folders as
    tell the files apart.

    The table `autoencoders` has one row for each; its two halves are printed.

    Args:
        agent: path of the weights of an agent, or of a decision transformer.
        sae: path of an autoencoder, or of several, of any taps of this agent.
        split: held-out levels to play; keep `test` for what is reported. Statistics are of validation levels always.
        num_levels: the first so many of them; 0 for no play.
        ablated_levels: the first so many of those are also played with the tap's mean and zeros, which takes longest,
            as such an agent seldom finishes; null for all.
        validation_frames: that statistics are over; 50 000 tell a dead latent from a rare one. Whole maps are kept on
            the disk: 0.8 GB for as many of conv4a, 7 GB of conv1a.
        game: what is played.
        distribution_mode: its difficulty.
        greedy: play the likeliest action rather than sample.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        precision: in which the agent runs.
        cache_dir: folder of activation caches, and of arms that were played before something interrupted.
        device: where; `auto` takes a GPU if there is one.
        allow_other_agent: take autoencoders that were trained on another agent, if their taps fit.

    Raises:
        ValueError: a file that is missing, given twice or does not fit, a number out of its range, an unknown game.
    """

    def __init__(
        self,
        agent: str,
        sae: list[str] | str,
        split: Literal["validation", "test"] = "validation",
        num_levels: int = 200,
        ablated_levels: int | None = None,
        validation_frames: int = 50_000,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        greedy: bool = False,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: str = "auto",
        allow_other_agent: bool = False,
    ) -> None:
        check_at_least_one(
            {"validation_frames": validation_frames, "num_environments": num_environments, "max_steps": max_steps}
        )
        check_not_negative({"num_levels": num_levels, "seed": seed})
        paths = [sae] if isinstance(sae, str) else list(sae)
        check_files("sae", paths)
        self.levels = held_out_levels(split, num_levels) if num_levels else range(0)
        check_ablated_levels(ablated_levels, num_levels)
        self.ablated_levels = ablated_levels
        self.settings = EnvironmentSettings(game, distribution_mode)
        VectorEnvironment(self.settings, 1).close()  # refuses an unknown game
        self.device = choose_device(device)
        self.agent_path, self.agent = agent, load_network(agent).to(self.device).requires_grad_(False)
        loaded = [load_sae(path, self.agent, allow_other_agent) for path in paths]
        self.saes: dict[str, SAEBase] = {
            name: each.to(self.device).requires_grad_(False) for name, each in zip(_names(paths), loaded, strict=True)
        }
        self.validation_frames, self.cache_dir = validation_frames, cache_dir
        self.greedy, self.seed, self.num_environments, self.max_steps = greedy, seed, num_environments, max_steps
        self.precision: Precision = precision

    def run(self) -> Report:
        """Look at the frames, play the levels."""
        by_tap: dict[str, dict[str, SAEBase]] = {}
        for name, sae in self.saes.items():
            by_tap.setdefault(sae.tap, {})[name] = sae
        measured = {name: numbers for tap, saes in by_tap.items() for name, numbers in self._look(tap, saes).items()}
        found = {
            name: {"sae/latents": float(sae.num_latents)}
            | {f"sae/{key}": float(value) for key, value in measured[name].values.items()}
            for name, sae in self.saes.items()
        }
        for name, cosine in self._stability(measured).items():
            found[name]["sae/seed_cosine"] = cosine
        if self.levels:
            for name, metrics in self._play().items():
                found[name] |= metrics
        return Report(self._summary(found), self._tables(found))

    @torch.inference_mode()
    def _look(self, tap: str, saes: Mapping[str, SAEBase]) -> dict[str, SAENumbers]:
        """Everything that one tap's validation frames say of its autoencoders."""
        data = ActivationDataModule(
            self.agent_path,
            [tap],
            environment=self.settings,
            validation_frames=self.validation_frames,
            validation_batch_size=_BATCH,
            precision=self.precision,
            cache_dir=self.cache_dir,
        )
        data.device = self.device
        shape = data.activation_shapes[tap]
        sums = {name: SAEValidation(sae.num_latents, shape).to(self.device) for name, sae in saes.items()}
        for batch in tqdm(data.val_dataloader(), desc=f"look at {tap}", unit="batch", leave=False):
            batch = batch.to(self.device)
            inside = (batch.inside or {}).get(tap)
            for name, sae in saes.items():
                sums[name].update(sae, batch.activations[tap], inside, batch.levels)
        data.teardown("validate")
        return {name: sums[name].compute(sae) for name, sae in saes.items()}

    def _stability(self, measured: Mapping[str, SAENumbers]) -> dict[str, float]:
        """Of those that have others like them."""
        return seed_cosines(
            {name: sae.directions().flatten(1) for name, sae in self.saes.items()},
            {name: numbers.latents["frequency"] for name, numbers in measured.items()},
            {name: (sae.tap, type(sae), sae.config()) for name, sae in self.saes.items()},
        )

    def _play(self) -> dict[str, dict[str, float]]:
        """The `splice/` metrics of each."""
        results = evaluate_splices(
            self.agent,
            {name: (sae.tap, sae) for name, sae in self.saes.items()},
            self.levels,
            settings=self.settings,
            greedy=self.greedy,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=self.precision,
            ablated_levels=self.ablated_levels,
            keep_dir=self.cache_dir,
            progress=True,
        )
        return {name: result.metrics() for name, result in results.items()}

    def _summary(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """With the autoencoder's name in each metric's, unless it is the only one."""
        if len(found) == 1:
            return dict(*found.values())
        return {
            key.replace("/", f"/{name}/", 1): value for name, metrics in found.items() for key, value in metrics.items()
        }

    def _tables(self, found: Mapping[str, Mapping[str, float]]) -> dict[str, Table]:
        """All columns to be written, and in two parts, as a terminal has room for."""

        def table(columns: Mapping[str, str], printed: bool) -> Table:
            kept = [key for key in columns if any(key in metrics for metrics in found.values())]
            rows: list[list[Cell]] = [
                [name, sae.tap, type(sae).__name__, *(_cell(found[name], key) for key in kept)]
                for name, sae in self.saes.items()
            ]
            return Table(["autoencoder", "tap", "kind", *(columns[key] for key in kept)], rows, printed)

        tables = {"autoencoders": table(_DICTIONARY | _SPLICE, False), "dictionaries": table(_DICTIONARY, True)}
        return tables | ({"splices": table(_SPLICE, True)} if self.levels else {})


def _names(paths: Sequence[str]) -> list[str]:
    """Of each file, its own if no two are alike, otherwise with the folders below those that all have in common."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    resolved = [Path(path).resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in resolved])
    return [path.relative_to(shared).with_suffix("").as_posix() for path in resolved]


def _cell(metrics: Mapping[str, float], key: str) -> Cell:
    """A number, with its bounds where it has any; empty where it is not defined."""
    value = metrics.get(key, np.nan)
    if not np.isfinite(value):
        return ""
    if f"{key}_low" in metrics:
        return bracketed(value, metrics[f"{key}_low"], metrics[f"{key}_high"])
    return int(value) if key == "sae/latents" else round(value, 5)
