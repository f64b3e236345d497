"""Is a sparse autoencoder better than what is to be had without one? It, and plainer codes, at the same sparsity."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from datamodules import ActivationDataModule
from datamodules.recorder import shows_whole_maze
from environments import EnvironmentSettings, held_out_levels
from environments.procgen import DistributionMode
from interpretability.component_codes import (
    ComponentCode,
    independent_components,
    non_negative_parts,
    principal_components,
    raw_channels,
)
from interpretability.concept_score import LevelAUC
from interpretability.episodes import GAME_TIME_OUT
from interpretability.optimised_images import OptimisationSettings
from interpretability.splice import SpliceResult, evaluate_splices
from interpretability.statistics import join_metrics, paired_bootstrap, ratio_of_means
from interpretability.stored_colours import game_colours
from networks import DEFAULT_PRECISION, Precision, SAEBase, load_agent, load_sae, save_weights
from studies.alike_training import train_alike
from studies.arguments import check_at_least_one, check_files, check_not_negative
from studies.baselines_over_agents import (
    agents_table,
    check_agents,
    compare_at,
    differences,
    mean_over_agents,
    training_rows,
)
from studies.code_comparison import (
    FULL,
    Code,
    Measured,
    code_table,
    draw_codes,
    measure,
    measure_concepts,
    over_seeds,
)
from studies.report import Report, Study
from studies.sae_baselines_page import (
    DIFFERENCES,
    baselines_page,
    conclusion,
    difference_table,
    draw_best_units,
)
from studies.subject import choose_device

_OPTIMISATION = OptimisationSettings()


class SAEBaselines(Study):
    """Compares an autoencoder on validation frames with codes that need none or no training, at the autoencoder's L0.

    - `sae`: the autoencoder
    - `channels`, `pca`, `ica`: the raw channels, and as many principal or independent components as there are
      dimensions; `nmf`: non-negative factors, as many as the autoencoder has latents. At each position the coefficients
      that add most are kept; one threshold for all positions, chosen on training activations, makes their mean number
      the autoencoder's L0. `channels full`, `pca full`, `ica full` and `nmf full` keep all. On a tap that falls below 0
      channels are taken about their means, as components are, and `nmf` is left out: there is no such factorisation
    - `random decoder`: an autoencoder of the same kind whose directions stay as they were drawn
    - `random agent`: one of the same kind, of an agent of the same architecture whose weights were drawn at random,
      measured on that agent's own play and activations

    Both are trained as the autoencoder's file says that it was; their L0 is what comes of that.

    Summary, with underscores for spaces: `baselines/CODE/explained_variance` and
    `.../explained_variance_least_channel`, `.../l0`, `.../l0_inside`, `.../components`, `.../dead_fraction`. With
    `splice_levels` each code of the agent replaces its tap in play: `.../return_ratio` to untouched play and `.../kl`
    in nats, with 95 % bounds over levels, and likewise for `mean ablation`. On taps with maps of heist's whole world,
    `.../concept_auc` says how well a unit tells by its activation at a position whether the entity that it stands for
    is there (mean over units, with bounds over levels), and `.../entity_auc` how well each entity's own unit does (mean
    over entities); both choose on other levels than they measure on. `baselines/sae/concept_auc_less_CODE` is how much
    higher the autoencoder's is than that of `channels`, `pca` and `random_decoder`, paired by level. With `more`,
    `baselines/sae_seeds/KEY` is the mean over all autoencoders with bounds by Student's t. With `agents`,
    `baselines/agents/CODE/KEY` is that over agents, each with its own autoencoder, for `sae`, `channels` and `pca`.

    `pages/baselines.html` has the conclusion in numbers, tables, and side by side the latents and the raw channels that
    stand best for an entity (where that is not known, contribute most) with optimised images and examples.

    Args:
        agent: path of the agent's weights.
        sae: path of the autoencoder.
        more: paths of others of the same tap, of other seeds say.
        agents: paths of other agents with the same tap, at which an autoencoder is trained alike and compared too.
        game: what is played.
        distribution_mode: its difficulty.
        num_frames: training frames in the cache, of the agent and of the one with random weights.
        batch_size: training rows of a batch; null takes the file's own, or 4 096 where it does not say.
        fit_rows: positions that components are fitted on.
        steps: training steps of the two autoencoders; null takes the file's own.
        validation_frames: what all are measured on.
        splice_levels: validation levels to play; 0 for none.
        shown: latents, and channels, that are pictured.
        examples: frames shown of each.
        optimisation: how their images are made.
        seed: of the random weights, of directions and of the fits.
        num_environments: levels played at a time.
        max_steps: episodes are cut here; 1000 is the game's own time-out.
        precision: in which the agent runs.
        cache_dir: folder of activation caches; the agent with random weights is kept there too.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing, given twice or does not fit, a number below 1, a negative seed, too many
            levels.
    """

    def __init__(
        self,
        agent: str,
        sae: str,
        more: tuple[str, ...] = (),
        agents: tuple[str, ...] = (),
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        num_frames: int = 61_440,
        batch_size: int | None = None,
        fit_rows: int = 50_000,
        steps: int | None = None,
        validation_frames: int = 5_000,
        splice_levels: int = 0,
        shown: int = 6,
        examples: int = 4,
        optimisation: OptimisationSettings = _OPTIMISATION,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: str = "auto",
    ) -> None:
        if fit_rows < 1 or (steps is not None and steps < 1) or splice_levels < 0:
            raise ValueError(
                f"fit_rows {fit_rows} and steps {steps} must be at least 1, splice_levels {splice_levels} at least 0"
            )
        check_at_least_one(
            {"shown": shown, "examples": examples, "num_environments": num_environments, "max_steps": max_steps}
        )
        check_not_negative({"seed": seed})
        self.shown, self.examples, self.optimisation = shown, examples, optimisation
        self.device = choose_device(device)
        check_files("sae, more:", [sae, *more])
        self.agent_path = agent
        self.agent = load_agent(agent).to(self.device).requires_grad_(False)
        self.sae: SAEBase = load_sae(sae, self.agent).to(self.device).requires_grad_(False)
        self.more = [load_sae(path, self.agent).to(self.device).requires_grad_(False) for path in more]
        for path, other in zip(more, self.more, strict=True):
            if other.tap != self.sae.tap:
                raise ValueError(f"{path} is of {other.tap}, not of {self.sae.tap}: more takes others of the same tap")
        self.agents = check_agents(agents, self.sae, agent, self.agent.weights_hash)
        self.steps = steps if steps is not None else int(self.sae.metadata.get("steps", 5_000))
        self.fit_rows, self.seed, self.cache_dir = fit_rows, seed, cache_dir
        self.levels = held_out_levels("validation", splice_levels) if splice_levels else range(0)
        self.num_environments, self.max_steps = num_environments, max_steps
        self.precision: Precision = precision
        self.settings = EnvironmentSettings(game, distribution_mode)
        self._data = partial(
            ActivationDataModule,
            taps=[self.sae.tap],
            environment=self.settings,
            num_frames=num_frames,
            validation_frames=validation_frames,
            positions_per_frame=64 if self.sae.kernel_size == 1 else None,
            batch_size=int(self.sae.metadata.get("batch_size", 4_096)) if batch_size is None else batch_size,
            precision=precision,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.data = self._data(agent)
        self.has_concepts = shows_whole_maze(self.settings) and len(self.agent.taps[self.sae.tap]) == 3

    def run(self) -> Report:
        """Train, fit, measure and play."""
        tap = self.sae.tap
        seeds: dict[str, Code] = {f"sae {number}": sae for number, sae in enumerate(self.more, start=2)}
        codes: dict[str, Code] = {
            "sae": self.sae,
            **seeds,
            "random decoder": self._train(self.data, random_decoder=True),
        }
        l0 = measure({"sae": self.sae}, self.data, tap)["sae"]["l0"]
        rows = training_rows(self.data, tap, self.fit_rows)
        for name, code in self._components(rows).items():
            codes |= {name: code.limited(rows, l0).to(self.device), name + FULL: code.to(self.device)}
        measured = measure(codes, self.data, tap)
        self.data.teardown("fit")
        sparse = {name: code for name, code in codes.items() if not name.endswith(FULL)}
        by_level = self._add_concepts(measured, sparse, self.agent_path)
        for name in ("sae", *seeds):
            if by_level:
                measured[name] |= differences(by_level, name, DIFFERENCES)
        if len(self.levels):
            for name, numbers in self._play(sparse).items():
                measured[name] = measured.get(name, {}) | numbers
        untrained = self._data(self._random_agent())
        drawn: dict[str, Code] = {"random agent": self._train(untrained)}
        measured |= measure(drawn, untrained, tap)
        untrained.teardown("fit")
        self._add_concepts(measured, drawn, self._random_agent())
        if self.more:
            measured["sae seeds"] = over_seeds([measured["sae"], *(measured[name] for name in seeds)])
        summary = {
            f"baselines/{name.replace(' ', '_')}/{key}": value
            for name, numbers in measured.items()
            for key, value in numbers.items()
        }
        tables = {"codes": code_table(measured), "differences": difference_table(measured)}
        mean: Measured = {}
        if self.agents:
            by_agent = {Path(self.agent_path).stem: measured} | {n: self._elsewhere(p) for n, p in self.agents.items()}
            mean = mean_over_agents(list(by_agent.values()))
            tables["agents"] = agents_table(by_agent, mean)
            summary |= {f"baselines/agents/{code}/{key}": v for code in mean for key, v in mean[code].items()}
        figure = draw_codes(measured, f"{tap}: what codes explain on validation frames")
        sheets = {"latents": self._sheet(self.sae, by_level.get("sae"))}
        sheets["channels"] = self._sheet(None, by_level.get("channels"))
        self.data.teardown("validate")
        said = conclusion(tap, measured, mean)
        page = baselines_page(said, tables["codes"], tables["differences"], figure, sheets, tables.get("agents"))
        return Report(summary, tables, {"codes": figure, **sheets}, pages={"baselines": page})

    def _sheet(self, sae: SAEBase | None, by_level: LevelAUC | None) -> UInt8[Tensor, "H W 3"]:
        """The best latents, or channels."""
        return draw_best_units(
            self.agent,
            self.sae.tap,
            sae,
            self.data.val_dataloader(),
            game_colours(self.settings, self.cache_dir),
            None if by_level is None else by_level.detectors,
            shown=self.shown,
            examples=self.examples,
            settings=self.optimisation,
            precision=self.precision,
        )

    def _add_concepts(self, measured: Measured, codes: Mapping[str, Code], agent: str) -> dict[str, LevelAUC]:
        """What the units of codes stand for, where that can be known; nothing elsewhere."""
        if not self.has_concepts:
            return {}
        labelled = self._data(agent, labels=True)
        concepts, by_level = measure_concepts(codes, labelled, self.sae.tap)
        for name, numbers in concepts.items():
            measured[name] |= numbers
        labelled.teardown("validate")
        return by_level

    def _train(self, data: ActivationDataModule, random_decoder: bool = False) -> SAEBase:
        """An autoencoder made and trained as the given one was."""
        return train_alike(self.sae, data, self.steps, self.seed, self.device, random_decoder=random_decoder)

    def _elsewhere(self, path: str) -> Measured:
        """The comparison at another agent."""
        labelled = self._data(path, labels=True) if self.has_concepts else None
        return compare_at(
            self.sae, self._data(path), labelled,
            steps=self.steps, seed=self.seed, fit_rows=self.fit_rows, device=self.device,
        )  # fmt: skip

    def _random_agent(self) -> str:
        """The file of an agent of the same architecture that never learnt anything."""
        path = Path(self.cache_dir) / f"random_{self.agent.architecture}_seed{self.seed}.safetensors"
        save_weights(path, self.agent.untrained(self.seed), {})
        return str(path)

    def _components(self, rows: Float[Tensor, "R C"]) -> dict[str, ComponentCode]:
        found: dict[str, ComponentCode] = {
            "channels": raw_channels(rows),
            "pca": principal_components(rows),
            "ica": independent_components(rows, self.seed),
        }
        if rows.min() >= 0:
            found["nmf"] = non_negative_parts(rows, self.sae.num_latents, self.seed)
        return found

    def _play(self, codes: Mapping[str, Code]) -> Measured:
        """Returns and divergences with each code in the tap's place, on the same levels with the same action noise."""
        results = evaluate_splices(
            self.agent, {name: (self.sae.tap, code) for name, code in codes.items()}, self.levels,
            settings=self.settings, seed=self.seed, num_environments=self.num_environments, max_steps=self.max_steps,
            precision=self.precision, progress=True,
        )  # fmt: skip

        def numbers(result: SpliceResult, arm: Literal["spliced", "mean_ablated"]) -> dict[str, float]:
            ratio = paired_bootstrap(ratio_of_means, [getattr(result, arm).returns, result.clean.returns])
            return join_metrics({"return_ratio": ratio, "kl": result.comparisons[arm].intervals()["kl"]})

        found = {name: numbers(result, "spliced") for name, result in results.items()}
        return found | {"mean ablation": numbers(results["sae"], "mean_ablated")}
