import re
from pathlib import Path

import environments
import interpretability
from environments import heist

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "scenarios.md").read_text(encoding="utf-8")


def test_the_example_runs():
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    environment = environments.VectorEnvironment(environments.EnvironmentSettings(), 1)
    names = {**vars(heist), **vars(environments), "first_states": interpretability.first_states}
    names["environment"] = environment
    exec(example, names)
    (state,) = map(environments.State.from_bytes, environment.get_states())
    assert heist.pickup_order(state) == ["green_key", "blue_key", "gem"]
    assert heist.read_layout(state).held == 0b100
    environment.close()


def test_every_function_that_the_page_names_is_there():
    table = re.search(r"\| kind \|.*?\n\n", PAGE, re.DOTALL)[0]
    functions = re.findall(r"`(\w+)`", table)
    assert len(functions) > 25
    for name in functions:
        assert callable(getattr(heist, name)), name


def test_the_picture_is_small():
    assert (DOCS / "scenarios.png").stat().st_size < 300_000
