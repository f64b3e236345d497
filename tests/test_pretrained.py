from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pretrained"


def test_what_is_shipped_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10_000_000


def test_every_shipped_file_is_on_the_card():
    """By its name, or, in folders, by the part behind the agent's name that the card gives."""
    card = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.safetensors"):
        assert path.stem.removeprefix("heist_easy_customcnn_seed0_sae_") in card, path.name
