import re
from pathlib import Path

from datamodules.probes import CONTROLS
from environments.heist import TARGETS, ClassTarget
from lightning_modules.probe_results import MAJORITY, SHUFFLED
from networks.linear_readout import FORMS

PAGE = (Path(__file__).parents[2] / "docs/probes.md").read_text(encoding="utf-8")


def test_every_target_stands_with_its_answers_and_its_oracle():
    table = PAGE[PAGE.index("| target | answers | oracle |") :]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line.startswith("|")]
    assert [name for name, _, _ in rows] == [f"`{target.name}`" for target in TARGETS]
    for (_, answers, oracle), target in zip(rows, TARGETS, strict=True):
        assert oracle == target.oracle
        names = target.classes if isinstance(target, ClassTarget) else target.columns
        assert answers.endswith(", ".join(names))


def test_every_form_and_control_is_there():
    assert set(re.findall(r"^\| `(\w+)` \| (?!one of|numbers?:)", PAGE, re.MULTILINE)) == {
        *FORMS, *CONTROLS, MAJORITY, SHUFFLED
    }  # fmt: skip
