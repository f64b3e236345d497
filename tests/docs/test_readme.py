import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("pretrained/*.md")])


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith("http"):
            continue
        path, _, part = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), link
        assert not part or part in anchors(there), link


def test_the_index_lists_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


def test_a_bilinear_layer_comes_apart():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n([^`]*?decompose.*?)```", readme, re.DOTALL)
    names: dict = {"torch": torch, "frames": torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)}
    exec(example, names)
    agent, left, acts = names["agent"], names["left"], names["acts"]
    exact = left.rebuild(acts) + agent.fc3.bias[1]
    torch.testing.assert_close(exact.float(), agent(names["frames"]).logits[:, 1], atol=1e-5, rtol=1e-4)
    assert names["logits"].shape == (8,)
    assert left.eigenvectors[:3].shape == (3, 256)
    assert names["picture"].ndim == 3
    assert (names["channels"].shape, names["places"].shape) == ((32, 32), (32, 8, 8))
    assert names["largest"].eigenvectors.shape[1:] == (32, 5, 5)


def test_the_edit_of_ones_own_scales_its_channels():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", index, re.DOTALL)[0], names)
    edit = names["ScaleChannels"](4, [1, 2], 0.5)
    for shape in ((2, 4), (2, 4, 3, 3)):
        edited = edit(torch.ones(shape, dtype=torch.bfloat16))
        assert edited.shape == shape
        assert edited.dtype == torch.bfloat16
        assert edited.view(2, 4, -1)[0, :, 0].tolist() == [1, 0.5, 0.5, 1]
