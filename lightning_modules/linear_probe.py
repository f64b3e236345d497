"""Fits linear probes: what can be read from each tap, and what the controls say of it."""

from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules.probe_batch import PIXELS, PIXELS_PCA, Examples, ProbeBatch, Subject, pixels_on_grid, seen_as
from environments.heist import POSITION_TARGETS, ClassTarget, choose_targets, positions
from interpretability import ProbeResult
from lightning_modules.probe_answers import Answers
from lightning_modules.probe_basis import Basis, leading_components, plain, shared_over_positions
from lightning_modules.probe_descent import scores
from lightning_modules.probe_fit import fit_path
from lightning_modules.probe_losses import JoinedLoss
from lightning_modules.probe_results import SHUFFLED, ScoreBook
from lightning_modules.run_checks import refuse_other_agent, tell_changed_settings
from networks.linear_readout import FORMS, Form, LinearReadout

HERE = ("elsewhere", "here")
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)
_AT_ONCE = 4_096  # frames scored together


class LinearProbe(LightningModule):
    """Reads every target from every tap, in every form, by multinomial logistic regression or ridge.

    One training step is one subject of the data (a tap of the agent, of the control agent, or the pixels) and fits all
    targets and forms on all its training frames to the minimum; each target's penalty is the one of the path that
    does best on validation levels. So an epoch is a whole run, and a checkpoint between two steps loses nothing. The
    agent's taps are also fitted to shuffled labels. Pixels are compared in the same form: per position of a tap with
    all pixels there; `pixels_pca` (flat form) reads them by their 256 leading principal components alone. Scores are
    those on test levels (`trainer.test`), with intervals over levels; as `best` is reported the tap with the lowest
    validation loss, with `above_pixels`, its score less that of the pixels.

    Args:
        targets: names of `environments.heist.TARGETS`; null for all. The position form has `POSITION_TARGETS`.
        forms: `flat`: the whole (mean-pooled) map; `pooled`: its mean over positions, of maps only; `position`:
            whether an entity is at a position, from the channels there, of maps only.
        shuffled: also fit shuffled labels: how much a probe reads where there is nothing to read.
        strengths: path of penalties on standardised features, falling.
        path_rows: rows on which the path is walked; the chosen fits then go on on all.
        position_rows: random positions of the training (and of the validation) frames for the position form.
        sharing: in the flat form of maps, pixels' and controls' too, how much more freely a channel may weigh at all
            positions alike than at one alone (`lightning_modules.probe_basis.shared_over_positions`): fewer levels then
            suffice for what is told by something being there, wherever. 0 for a plain penalty.
        seed: of random rows and shuffles.

    Attributes:
        results: after a test, one for each form, target and tap of the agent.
        headline_metrics: part of the names of those metrics that a long table is cut down to.

    Raises:
        ValueError: an argument that cannot be meant.
    """

    headline_metrics = "/best/"

    def __init__(
        self,
        targets: list[str] | None = None,
        forms: tuple[Form, ...] = FORMS,
        shuffled: bool = True,
        strengths: tuple[float, ...] = STRENGTHS,
        path_rows: int = 25_000,
        position_rows: int = 50_000,
        sharing: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not forms or not set(forms) <= set(FORMS):
            raise ValueError(f"forms {list(forms)}: choose at least one of {', '.join(FORMS)}")
        if not strengths or min(strengths) <= 0 or list(strengths) != sorted(strengths, reverse=True):
            raise ValueError(f"strengths {list(strengths)} are no path of penalties: give falling numbers above 0")
        for name, value in (("path_rows", path_rows), ("position_rows", position_rows)):
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        if sharing < 0:
            raise ValueError(f"sharing is {sharing}: at least 0 is needed")
        self.targets = choose_targets(targets)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.forms, self.shuffled, self.strengths = tuple(forms), shuffled, tuple(strengths)
        self.path_rows, self.position_rows, self.sharing, self.seed = path_rows, position_rows, sharing, seed
        self.readouts = nn.ModuleDict()
        self.results: list[ProbeResult] = []
        self._book = ScoreBook()

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Make the readouts to the measure of the data, once.

        Raises:
            ValueError: no tap can be read in the chosen forms, or weights of another precision than float32.
        """
        if len(self.readouts):
            return
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision != "32-true":
            raise ValueError(f"trainer.precision {precision}: probes are fitted in float32: give 32-true")
        outputs = {
            target.name: target.classes if isinstance(target, ClassTarget) else target.columns
            for target in self.targets
        }
        classes = [target.name for target in self.targets if isinstance(target, ClassTarget)]
        for subject in self._data.subjects:
            for form, seen in self._views(subject):
                what = (outputs, classes)
                if form == "position":
                    what = (dict.fromkeys(POSITION_TARGETS, HERE), list(POSITION_TARGETS))
                for network in self._networks(subject):
                    readout = LinearReadout(seen.tap, form, seen.shape, seen.reduced, *what)
                    self.readouts[_key(network, form, seen.tap)] = readout
        if not len(self.readouts):
            raise ValueError(f"forms {list(self.forms)} are of maps, and no tap is one: add flat, or probe a map")

    def readout(self, tap: str, form: Form = "flat", network: str = "agent") -> LinearReadout:
        """What was fitted to one tap.

        Raises:
            ValueError: there is none.
        """
        key = _key(network, form, tap)
        if key not in self.readouts:
            raise ValueError(f"nothing was fitted to {tap} of {network} in the form {form}")
        readout = self.readouts[key]
        assert isinstance(readout, LinearReadout)
        return readout

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        """Fit everything that is to be read from one subject."""
        with torch.autocast(self.device.type, enabled=False):  # in float32 whatever the Trainer's precision
            for form, seen in self._views(batch.subject):
                self._fit(seen_as(batch, seen), form)
        optimiser: Any = self.optimizers()
        optimiser.step()  # nothing is left for it to do: Lightning counts steps, and saves checkpoints, by it

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Something whose steps can be counted: each fit minimises by itself."""
        return torch.optim.SGD(self.parameters(), lr=1.0)

    @torch.no_grad()
    def test_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        """Score one subject's readouts on test levels."""
        for form, seen in self._views(batch.subject):
            examples = seen_as(batch, seen).examples["test"]
            truth = self._truth(examples, form, seen)
            for network in self._networks(seen):
                readout = self.readout(seen.tap, form, network)
                with torch.autocast(self.device.type, enabled=False):
                    parts = [
                        nn.functional.linear(readout.features(acts.to(self.device)), readout.weight, readout.bias).cpu()
                        for acts in examples.activations.split(_AT_ONCE)
                    ]
                self._book.add(network, readout, torch.cat(parts), truth, examples.levels)

    def on_test_epoch_end(self) -> None:
        """Put scores and controls together and log them."""

        def loss(form: Form, target: str, tap: str) -> float:
            readout = self.readout(tap, form)
            one = float(readout.validation_loss[list(readout.outputs).index(target)])
            # of a whole frame, as maps of more positions have fewer of a hundred that are here
            return one * readout.reduced[1] * readout.reduced[2] if form == "position" else one

        self.results = list(self._book.results(loss))
        self._book = ScoreBook()
        for result in self.results:
            for name, interval in result.metrics(self._data.data_name).items():
                self.log(name, interval.value)
                self.log(f"{name}_low", interval.low, logger=False)
                self.log(f"{name}_high", interval.high, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whose activations these are, and what decides the fits."""
        checkpoint["agent_hash"] = self._data.agent.weights_hash
        checkpoint["probe_settings"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another agent, of other probes, or with some probes that were fitted otherwise.

        Raises:
            ValueError: says what differs, and what to do.
        """
        refuse_other_agent(checkpoint, self._data.agent)
        here = self._settings()
        there = checkpoint.get("probe_settings", here)  # those of before do not say
        done = checkpoint.get(type(self._data).__qualname__, {}).get("done", 0)  # the data are loaded after this
        tell_changed_settings(there, here, fixed=here if done else ())
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
        if own != saved:
            raise ValueError(
                "ckpt_path: this checkpoint is of other taps, targets or forms: "
                "use its own configuration, or start without ckpt_path"
            )

    def _settings(self) -> dict[str, Any]:
        """What decides the fits, as primitives."""
        return {
            "targets": [target.name for target in self.targets],
            "forms": list(self.forms),
            "shuffled": self.shuffled,
            "strengths": list(self.strengths),
            "path_rows": self.path_rows,
            "position_rows": self.position_rows,
            "sharing": self.sharing,
            "seed": self.seed,
        }

    def _views(self, subject: Subject) -> list[tuple[Form, Subject]]:
        """In which forms a subject is read, and as what: pixels per position on the grid of every tap."""
        flat_only = len(subject.shape) != 3 or subject.network == PIXELS_PCA
        found: list[tuple[Form, Subject]] = []
        for form in self.forms:
            if form == "position" and subject.network == PIXELS:
                taps = [each for each in self._data.subjects if each.network == "agent" and len(each.shape) == 3]
                grids = dict.fromkeys(each.reduced[1:] for each in taps)
                found += [(form, pixels_on_grid(subject, *grid)) for grid in grids]
            elif form == "flat" or not flat_only:
                found.append((form, subject))
        return found

    def _networks(self, subject: Subject) -> tuple[str, ...]:
        return ("agent", SHUFFLED) if subject.network == "agent" and self.shuffled else (subject.network,)

    @torch.no_grad()
    def _fit(self, batch: ProbeBatch, form: Form) -> None:
        readout = self.readout(batch.subject.tap, form, batch.subject.network)
        channels, *space = batch.subject.shape
        by_components = batch.subject.network == PIXELS_PCA
        shares = form == "flat" and len(space) == 2 and self.sharing > 0 and not by_components
        wide, truth = {}, {}
        for split, examples in batch.examples.items():
            rows = self._some_positions(examples, batch.subject) if form == "position" else None
            wide[split] = self._features(readout, examples.activations, rows, channels if shares else 0)
            truth[split] = self._truth(examples, form, batch.subject)
            if rows is not None:
                frames, places = rows
                truth[split] = {name: (where[frames] == places).long() for name, where in truth[split].items()}
        features = {split: values[:, : readout.weight.shape[1]] for split, values in wide.items()}
        std, mean = torch.std_mean(features["training"], 0)
        std = std.where(std > 1e-6 * mean.abs() + 1e-12, 1.0)  # a unit that never changes says nothing
        for values in features.values():
            values.sub_(mean).div_(std)
        if by_components:
            basis = leading_components(features, std)
        elif shares:
            basis = shared_over_positions(wide, std, channels, self.sharing)
        else:
            basis = plain(features)
        networks = self._networks(batch.subject)
        readouts = {network: self.readout(batch.subject.tap, form, network) for network in networks}
        self._fit_readouts(readouts, basis, truth)
        for readout in readouts.values():
            if form == "position":
                where = self._truth(batch.examples["training"], form, batch.subject)
                readout.usual_position.copy_(torch.tensor([_most_frequent(where[name]) for name in readout.outputs]))
            readout.weight.div_(std)
            readout.bias.sub_(readout.weight @ mean)
            directions = readout.direction_weights()
            readout.component_mean.copy_(directions @ mean)
            components = scores(basis.standardised["training"], directions * std, torch.zeros_like(readout.bias))
            readout.component_std.copy_(components.std(0))

    def _fit_readouts(
        self, readouts: dict[str, LinearReadout], basis: Basis, truth: dict[str, dict[str, Tensor]]
    ) -> None:
        """Fit all targets, to shuffled labels as well where these have a readout, in one descent."""
        features = basis.features
        order = torch.randperm(len(features["training"]), generator=torch.Generator().manual_seed(self.seed))
        answers = [
            Answers(readout, is_class, truth, order if network == SHUFFLED else None)
            for network, readout in readouts.items()
            for is_class in sorted({name in readout.classes for name in readout.outputs})
        ]
        losses = {split: JoinedLoss([each.losses[split] for each in answers]) for split in features}
        fit = fit_path(
            features["training"],
            losses["training"],
            features["validation"],
            losses["validation"],
            self.strengths,
            self.path_rows,
            self.seed,
        )
        fit.weight = basis.read_back(fit.weight)
        parts = fit.split([each.outputs for each in answers], [each.targets for each in answers])
        for each, part in zip(answers, parts, strict=True):
            each.write(part)

    def _some_positions(self, examples: Examples, subject: Subject) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
        """Frame and position of the rows that the position form is fitted on."""
        count = subject.reduced[1] * subject.reduced[2]
        rows = torch.randperm(len(examples.levels) * count, generator=torch.Generator().manual_seed(self.seed))[
            : self.position_rows
        ]
        return rows // count, rows % count

    def _features(
        self, readout: LinearReadout, acts: Tensor, rows: tuple[Int[Tensor, " R"], Int[Tensor, " R"]] | None, spare: int
    ) -> Float[Tensor, "R K"]:
        """Rows of features, with so many columns to spare behind them."""
        if rows is not None:
            return acts.flatten(2)[rows[0], :, rows[1]].to(self.device).float()
        found = torch.empty(len(acts), readout.weight.shape[1] + spare, device=self.device)
        for start in range(0, len(acts), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            found[some, : readout.weight.shape[1]] = readout.features(acts[some].to(self.device))
        return found

    def _truth(self, examples: Examples, form: Form, subject: Subject) -> dict[str, Tensor]:
        """Answers by target: class indices [N], numbers [N D], or for the position form positions [N]."""
        if form != "position":
            return {target.name: torch.from_numpy(target.read(examples.labels)) for target in self.targets}
        where = torch.from_numpy(positions(examples.labels, *subject.reduced[1:]))
        return dict(zip(POSITION_TARGETS, where.unbind(1), strict=True))


def _key(network: str, form: Form, tap: str) -> str:
    return f"{network}|{form}|{tap}".replace(".", ":")  # module names have no dots


def _most_frequent(where: Int[Tensor, " N"]) -> int:
    known = where[where >= 0]
    return int(known.bincount().argmax()) if len(known) else 0
