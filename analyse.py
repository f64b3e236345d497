"""Ask a question of an agent: `python analyse.py --config configs/studies/NAME.yaml [--any.key value]`.

Every run owns the folder `runs/NAME/version_K/` with its configuration, `summary.json`, tables, figures, films, pages
and TensorBoard events.
"""

import sys
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from commands import USER_ERRORS, OneMessageParser, compute_exactly, config_files, one_line, quieten
from runs import continue_run, start_run
from studies import Study, StudyList
from studies.plain_page import agents_of, with_pages
from studies.tensorboard import write_events


def build_parser() -> OneMessageParser:
    """The command line: a configuration file, a study and where to write."""
    parser = OneMessageParser(description=__doc__, parser_mode="omegaconf+")
    parser.add_argument("-c", "--config", action="config", help="file to read the arguments from")
    parser.add_argument("--name", type=str | None, help="NAME in runs/NAME (default: the configuration file's)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--study", type=Study, required=True, help="the question and its arguments")
    return parser


def main(args: list[str] | None = None) -> int:
    """Parse, check, run the study, write and print its report; returns the exit code."""
    quieten()
    compute_exactly()
    arguments = sys.argv[1:] if args is None else args
    parser = build_parser()
    try:
        config = parser.parse_args(arguments)
        if config.name is None:
            files = config_files(arguments) or [config.study.class_path.rpartition(".")[2]]
            config.name = Path(files[-1]).stem
        study: Study = parser.instantiate(config).study
        claim = Path(config.root), config.name, parser.dump(config, skip_unset=False)
        run = (continue_run(*claim) if isinstance(study, StudyList) else None) or start_run(*claim)
    except USER_ERRORS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted before any work", file=sys.stderr)
        return 130
    if isinstance(study, StudyList):
        study.folder = run.folder  # what is done is written at once
    try:
        report = with_pages(study.run(), study, "../config.yaml")
        write_events(report, run.folder)
        report.write(run.folder)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # the latter is what Lightning makes of Ctrl-C
        if isinstance(study, StudyList) and study.began:
            said = "interrupted" if stopped else "unfinished"
            print(f"{said}: {run.folder}; the same command goes on with it", file=sys.stderr)
        else:
            run.discard()
            if stopped:
                print("interrupted: what was kept is found again by the same command", file=sys.stderr)
        if stopped:
            return 143 if isinstance(error, SIGTERMException) else 130
        raise
    finally:
        run.release()
    console = Console()
    for line in agents_of(study):
        console.print(line, highlight=False)
    report.show(console, run.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
