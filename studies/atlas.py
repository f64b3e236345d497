"""What does each latent mean? An atlas to browse: pictures, examples and numbers of every one, beside raw channels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from datamodules import ActivationBatch, ActivationDataModule
from datamodules.recorder import shows_whole_maze
from environments import EnvironmentSettings
from environments.procgen import DistributionMode
from interpretability.atlas import atlas_columns, draw_atlas
from interpretability.atlas_units import AtlasSettings, gather_units
from interpretability.receptive_fields import receptive_field
from interpretability.signed_taps import falls_below_zero
from interpretability.stored_colours import game_colours
from networks import DEFAULT_PRECISION, Precision
from studies.arguments import check_at_least_one
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device, load_subject

_SETTINGS = AtlasSettings()
_SIDES = (
    "Activations of this tap fall below 0, and each channel is two units: channel 7 is what of it lies above 0, "
    "channel 7, below 0 what lies below, turned over, so that its highest activation is the lowest of the channel. "
    "Co-active means that the channels' activations correlate."
)


class Atlas(Study):
    """Looks at every latent of an autoencoder, and every channel of its tap, over play of validation levels.

    Writes the folder `atlas/`; `atlas/index.html` opens in a browser from there and needs neither server nor network:
    a list that sorts and filters by any number, and a page a unit (`#latent-17`) with optimised images, examples that
    drive it most and at quantiles, its histogram, numbers and neighbours. `tables/units.csv` has the numbers.

    On a tap that falls below 0 every channel is two units: `channel 7` of what lies above 0 and, turned over,
    `channel 7, below 0` (`#below-7`), whose highest and mean activation say how far below it lies. What is active
    together is there told from the channels' activations themselves.

    Summary, for latents, channels and those below 0 (KIND `latent`, `channel`, `below`): `atlas/KIND/units`,
    `.../dead_fraction` (never active in these frames), `.../image_reaches`, the share of the others whose optimised
    images drive them at least as much as any frame did, and in heist `.../auc`, their mean best AUC for an entity's
    presence at a position, and `.../direction`, their mean direction selectivity.

    Args:
        agent: path of the agent's weights.
        sae: path of the autoencoder; null shows channels alone.
        tap: whose channels; null for the autoencoder's own.
        channels: show the tap's raw channels too.
        game: what is played; numbers about entities and directions exist for heist.
        distribution_mode: its difficulty.
        num_frames: validation frames looked through.
        settings: how much is shown of each unit.
        precision: in which the agent runs.
        cache_dir: folder of activation caches.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, nothing to show, a tap that does not exist or is not the
            autoencoder's, a number below 1.
    """

    def __init__(
        self,
        agent: str,
        sae: str | None = None,
        tap: str | None = None,
        channels: bool = True,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        num_frames: int = 20_000,
        settings: AtlasSettings = _SETTINGS,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: str = "auto",
    ) -> None:
        if sae is None and (tap is None or not channels):
            raise ValueError("there is nothing to show: give sae, or tap with channels: true")
        check_at_least_one({"num_frames": num_frames})
        self.device = choose_device(device)
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        if len(self.agent.taps[self.tap]) not in (1, 3):
            raise ValueError(f"{self.tap} has no channels: choose another tap")
        self.channels, self.settings, self.num_frames = channels, settings, num_frames
        self.precision: Precision = precision
        self.environment = EnvironmentSettings(game, distribution_mode)
        self._paths = (agent, sae)
        self.data = ActivationDataModule(
            agent,
            [self.tap],
            environment=self.environment,
            validation_frames=num_frames,
            labels=game == "heist",
            precision=precision,
            cache_dir=cache_dir,
        )
        self.data.device = self.device

    def run(self) -> Report:
        """Record, look, optimise, draw."""
        loader = self.data.val_dataloader()
        levels: set[int] = set()

        def batches() -> Iterator[ActivationBatch]:
            for batch in tqdm(loader, desc=f"look through {self.num_frames} frames", unit="batch", leave=False):
                levels.update(batch.levels.tolist())
                yield batch

        whole_world = shows_whole_maze(self.environment)
        groups = gather_units(
            self.agent,
            self.tap,
            self.sae,
            batches,
            self.num_frames,
            game_colours(self.environment, self.data.cache_dir),
            channels=self.channels,
            whole_world=whole_world,
            settings=self.settings,
            precision=self.precision,
        )
        self.data.teardown("validate")
        field = receptive_field(self.agent, self.tap)
        if field is not None and self.sae is not None:
            field = field.widened(self.sae.kernel_size)
        what = "channels" if self.sae is None else f"{self.sae.num_latents} latents"
        site, units = draw_atlas(
            groups,
            title=f"{self.tap}: {what}",
            lines=self._describe(len(levels)),
            field=field,
            labelled=whole_world,
        )
        columns = [each["key"] for each in atlas_columns(whole_world)]
        return Report(_summary(units), {"units": _table(units, columns)}, sites={"atlas": site})

    def _describe(self, levels: int) -> list[str]:
        agent, sae = self._paths
        source = f"Agent {agent}; {self.environment.game}, {self.environment.distribution_mode}; tap {self.tap}."
        if sae is not None:
            source += f" Autoencoder {sae}."
        over = f"Examples and numbers are over {self.num_frames} frames of {levels} validation levels."
        return [source, over, *([_SIDES] if self.channels and falls_below_zero(self.agent, self.tap) else [])]


def _summary(units: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    summary: dict[str, float] = {}
    for kind in dict.fromkeys(unit["kind"] for unit in units):
        numbers = [unit["numbers"] for unit in units if unit["kind"] == kind]
        alive = [each for each in numbers if each["maximum"] > 0]
        found = {
            "units": float(len(numbers)),
            "dead_fraction": 1 - len(alive) / len(numbers),
            "image_reaches": _mean([float(each["driven"] >= 1) for each in alive]),
            "auc": _mean([each.get("auc") for each in alive]),
            "direction": _mean([each.get("direction") for each in alive]),
        }
        summary |= {f"atlas/{kind}/{name}": value for name, value in found.items() if value is not None}
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _table(units: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for unit in units:
        values = [unit["numbers"][name] for name in columns]
        rows.append([unit["name"], *("" if value is None else value for value in values)])
    return Table(["unit", *columns], rows, printed=False)
