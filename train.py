"""Train whatever a configuration describes: `python train.py --config configs/NAME.yaml [--any.key value]`.

Every run owns the folder `runs/NAME/version_K/`. `--ckpt_path PATH` starts a new run from a checkpoint;
`--ckpt_path auto` goes on with the newest unfinished run of the same configuration, in its own folder.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import RunSummary
from commands import USER_ERRORS, OneMessageParser, compute_exactly, config_files, one_line, quieten
from networks.precision import warn_of_slow_bf16
from runs import Run, claim_run, readable


class TrainCLI(LightningCLI):
    """Lightning's command line, plus a folder for the run and a checkpoint to go on from."""

    run: Run

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        parser.add_argument("--name", type=str | None, help="NAME in runs/NAME (default: the configuration file's)")
        parser.add_argument("--ckpt_path", type=str | None, help="checkpoint to start from, or auto")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning, which would leave it to numpy to say that a seed is out of range."""
        super().parse_arguments(parser, args)
        if not 0 <= self.config.seed_everything < 2**32:
            raise ValueError(f"--seed_everything {self.config.seed_everything}: give 0 to {2**32 - 1}")

    def before_instantiate_classes(self) -> None:
        path = self.config.ckpt_path
        if path not in (None, "auto"):
            if not Path(path).is_file():
                raise FileNotFoundError(f"--ckpt_path: there is no file {path}; give a .ckpt file, or auto")
            if not readable(Path(path)):
                raise ValueError(
                    f"--ckpt_path: {path} is no checkpoint, or was cut short, or holds weights alone, from which no "
                    "run can go on: give a whole .ckpt file"
                )
        if self.config.name is None:
            files = config_files(self.parser.args)
            self.config.name = Path(files[-1]).stem if files else self.config.model.class_path.rpartition(".")[2]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Claim the run's folder, then build the Trainer that writes into it."""
        given = self.config_init.trainer
        config = self.parser.dump(self.config, skip_unset=False)
        self.run = run = claim_run(Path(given.default_root_dir), self.config.name, config, self.config.ckpt_path)
        kwargs["default_root_dir"] = str(self.run.folder)
        if given.logger is not False:
            others = given.logger if isinstance(given.logger, list) else [given.logger]
            board = TensorBoardLogger(run.folder.parents[1], self.config.name, run.version, default_hp_metric=False)
            kwargs["logger"] = [board, *(logger for logger in others if logger not in (None, True))]
        try:
            return super().instantiate_trainer(**kwargs)
        except BaseException as error:
            run.discard()
            if isinstance(error, (TypeError, *USER_ERRORS)):  # the first is Lightning's of impossible devices
                no_gpu = given.accelerator == "gpu" and not torch.accelerator.is_available()
                mend = "; give --trainer.accelerator auto" if no_gpu else ""
                raise ValueError(f"trainer: {one_line(error)}{mend}") from error
            raise


def main(args: list[str] | None = None) -> int:
    """Parse, fit, validate and test with the final weights, summarise; returns the exit code."""
    quieten()
    compute_exactly()
    summary = RunSummary()
    cli: TrainCLI | None = None
    try:
        cli = TrainCLI(
            run=False,
            args=args,
            parser_class=OneMessageParser,
            # interpolation is resolved once, after overrides
            parser_kwargs={"parser_mode": "omegaconf+", "description": __doc__},
            trainer_defaults={"callbacks": summary},
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
        )
        rank_zero_only(print)(cli.run, flush=True)
        trainer, model, data = cli.trainer, cli.model, cli.datamodule
        if str(trainer.precision).startswith("bf16"):
            warn_of_slow_bf16(trainer.strategy.root_device.type, "--trainer.precision 32-true")
        trainer.fit(model, datamodule=data, ckpt_path=cli.run.checkpoint, weights_only=True)
        if trainer.enable_validation:  # with the final weights, whenever the last validation was
            trainer.validate(model, datamodule=data, verbose=False)
        if is_overridden("test_step", model):  # on levels that nothing was chosen on
            trainer.test(model, datamodule=data, verbose=False)
        summary.finish(cli.run.folder)
    except USER_ERRORS as error:
        if summary.started:
            raise
        if cli is not None:
            cli.run.discard()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # of which Lightning makes a SystemExit once it is at work
        if cli is not None:
            raise
        print("interrupted before any work", file=sys.stderr)
        return 130
    except SystemExit as stop:  # what Lightning makes of Ctrl-C and SIGTERM; --help and wrong keys come before
        if cli is None:
            raise
        print("interrupted; the same command with --ckpt_path auto goes on", file=sys.stderr)
        return 143 if isinstance(stop, SIGTERMException) else 130
    except Exception:
        if cli is not None and not summary.started:
            cli.run.discard()
        raise
    finally:
        if cli is not None:
            cli.run.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
