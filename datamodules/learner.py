"""Whether data fit what learns from them, asked before anything is recorded."""

from lightning import LightningDataModule


def check_learner(data: LightningDataModule) -> None:
    """Have the module that a Trainer is about to train look at the data, if it has a `check_data`.

    Raises:
        ValueError: they do not go together.
    """
    if data.trainer is not None:
        check = getattr(data.trainer.lightning_module, "check_data", None)
        if check is not None:
            check(data)
