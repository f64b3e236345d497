"""What probes read, beside what the controls read: gathered over a test, then one result for each target and tap."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules.probe_batch import PIXELS, PIXELS_PCA, grid_name
from interpretability import ProbeResult
from lightning_modules.probe_metrics import ClassScores, NumberScores, PositionScores
from networks.linear_readout import Form, LinearReadout

SHUFFLED, MAJORITY = "shuffled", "majority"
CONTROLS = (MAJORITY, SHUFFLED, "random_agent", PIXELS_PCA, PIXELS)


class ScoreBook:
    """Scores of every network, form, target and tap, as they come in."""

    def __init__(self) -> None:
        self._scores: dict[tuple[str, Form, str, str], ClassScores | NumberScores | PositionScores] = {}
        self._classes: dict[tuple[Form, str], tuple[str, ...]] = {}
        self._grids: dict[str, str] = {}  # of each tap, the pixels on its grid

    def add(
        self,
        network: str,
        readout: LinearReadout,
        outputs: Float[Tensor, "R O"],
        truth: dict[str, Tensor],
        levels: Int[Tensor, " N"],
    ) -> None:
        """Score one readout's outputs; beside the agent's own, the answer that needs no activation.

        Args:
            network: whose activations.
            readout: what was fitted to them.
            outputs: rows are frames, or positions of frames, row by row of the map.
            truth: by target: class indices [N], numbers [N D], or positions [N].
            levels: of the frames.
        """
        for index, target in enumerate(readout.outputs):
            if readout.fitted[index]:
                columns = readout.columns(target)
                self._add(network, readout, target, outputs[:, columns], truth[target], levels)
                if network == "agent":
                    if readout.form == "position":
                        self._grids[readout.tap] = grid_name(*readout.reduced[1:])
                    same = readout.constant[columns].cpu().expand(len(outputs), -1)
                    if readout.form == "position":
                        same = _always_at(int(readout.usual_position[index]), outputs[:, columns], len(levels))
                    self._add(MAJORITY, readout, target, same, truth[target], levels)

    def results(self, loss: Callable[[Form, str, str], float]) -> Iterator[ProbeResult]:
        """A result for each target that was read from a tap of the agent.

        Args:
            loss: on validation levels, of a form, target and tap.
        """
        computed = {key: scores.compute() for key, scores in self._scores.items()}
        keys = [key[1:] for key, scores in computed.items() if key[0] == "agent" and scores]
        losses = {key: loss(*key) for key in keys}
        for form, target, tap in keys:
            scores, kept = computed["agent", form, target, tap], self._scores["agent", form, target, tap]
            headline = "accuracy" if "accuracy" in scores else "r2"
            controls = {}
            pixels = self._grids[tap] if form == "position" else PIXELS
            places = {PIXELS: pixels, PIXELS_PCA: PIXELS_PCA}
            for control in CONTROLS:
                found = computed.get((control, form, target, places.get(control, tap)))
                if found:
                    controls[control] = found[headline]
            lowest = min(value for key, value in losses.items() if key[:2] == (form, target))
            best = losses[form, target, tap] == lowest
            yield ProbeResult(
                form,
                target,
                tap,
                scores,
                controls,
                kept.confusion() if isinstance(kept, ClassScores) else None,
                self._classes[form, target],
                losses[form, target, tap],
                best,
                kept.above(self._scores[PIXELS, form, target, pixels]) if best and PIXELS in controls else None,
            )

    def _add(
        self, network: str, readout: LinearReadout, target: str, outputs: Tensor, true: Tensor, levels: Tensor
    ) -> None:
        scores: ClassScores | NumberScores | PositionScores
        if readout.form == "position":
            scores = PositionScores()
            scores.update((outputs[:, 1] - outputs[:, 0]).view(len(levels), -1), true, levels)
        elif target in readout.classes:
            scores = ClassScores(len(readout.outputs[target]))
            scores.update(outputs.argmax(1), true, levels)
        else:
            scores = NumberScores()
            scores.update(outputs, true, levels)
        self._scores[network, readout.form, target, readout.tap] = scores
        self._classes[readout.form, target] = readout.outputs[target]


def _always_at(position: int, like: Float[Tensor, "R 2"], frames: int) -> Float[Tensor, "R 2"]:
    """Outputs that name one position in every frame."""
    outputs = torch.zeros(frames, len(like) // frames, 2)
    outputs[..., 0] = 0.5
    outputs[:, position, 1] = 1.0
    return outputs.flatten(0, 1)
