"""What several kinds of training ask of a run: that it has an end, that it goes on from a checkpoint which fits."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.resuming import changed_settings
from networks import TappedNetwork


def finite_steps(steps: float) -> int:
    """The steps of a whole run, as a learning rate that falls over them needs them.

    Args:
        steps: `trainer.estimated_stepping_batches`.

    Raises:
        ValueError: the run has no end.
    """
    if steps == float("inf"):
        raise ValueError("the run has no end, so its learning rate cannot fall: set trainer.max_steps or max_epochs")
    return int(steps)


def is_logged(trainer: Any) -> bool:
    """Whether this step's numbers are logged: one in `log_every_n_steps`, and none for 0."""
    every = trainer.log_every_n_steps
    return every > 0 and (trainer.global_step + 1) % every == 0


def refuse_copy(module: LightningModule, memo: dict[int, Any]) -> LightningModule:
    """As `__deepcopy__` of a module that makes its networks in `setup`: callbacks copy it before there are any.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"a {type(module).__name__} cannot be copied, as Lightning's callbacks that average weights do: leave these out"
    )


def refuse_other_architecture(path: str, architecture: str, agent: TappedNetwork, argument: str) -> None:
    """Raise ValueError for a file, given as an argument, of another architecture than the agent to train."""
    if architecture != agent.architecture:
        raise ValueError(
            f"{path} is a {architecture}, the agent to train a {agent.architecture}: change agent or {argument}"
        )


def refuse_other_agent(checkpoint: Mapping[str, Any], agent: TappedNetwork) -> None:
    """Raise ValueError for a checkpoint that was trained on another agent's activations."""
    if "agent_hash" not in checkpoint:
        raise ValueError("ckpt_path: this checkpoint is of another kind of training: start without ckpt_path")
    if checkpoint["agent_hash"] != agent.weights_hash:
        raise ValueError(
            "ckpt_path: this checkpoint was trained on another agent's activations: "
            "set data.init_args.agent to that agent, or start without ckpt_path"
        )


def tell_changed_settings(there: Mapping[str, Any], here: Mapping[str, Any], fixed: Iterable[str]) -> None:
    """Say before a run goes on what `changed_settings` finds, with its arguments and its refusal."""
    if changed := changed_settings(there, here, fixed):
        rank_zero_info(f"goes on with settings that have changed since the checkpoint: {'; '.join(changed)}")
