import pytest
import torch

from interpretability import feature_sheet
from interpretability.colour import ColourMoments
from interpretability.dataset_examples import DatasetExamples
from interpretability.feature_sheet import FeatureSheet, draw_feature_sheet
from interpretability.optimised_images import OptimisationSettings
from interpretability.receptive_fields import ReceptiveField
from networks import CustomCNN, SparseAutoencoder

SETTINGS = OptimisationSettings(steps=2, starts=2)


def drawn(tap: str, sae: SparseAutoencoder | None = None, units: tuple[int, ...] = (3, 0)) -> FeatureSheet:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    frames = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    examples, colours = DatasetExamples(4), ColourMoments()
    colours.update(frames)
    with torch.no_grad():
        acts = agent(frames, record=(tap,), outputs=False).activations[tap]
        examples.update(frames, acts if sae is None else sae.encode(acts), torch.tensor([1, 2, 3, 3, 3, 3]))
    return draw_feature_sheet(
        agent, tap, units, examples, colours.statistics(), sae=sae, settings=SETTINGS, precision="fp32", title="Sheet"
    )


def test_a_row_for_each_latent_with_images_for_map_and_position() -> None:
    sheet = drawn("conv4a", SparseAutoencoder(32, 2))
    assert sheet.units == [3, 0]
    assert sheet.single is not None
    assert len(sheet.whole.images) == len(sheet.single.images) == 2
    assert sheet.picture.dtype == torch.uint8
    assert sheet.picture.shape[0] > 2 * 128
    assert sheet.picture.shape[1] > 6 * 128


def test_flat_taps_have_one_image_a_unit() -> None:
    sheet = drawn("fc1")
    assert sheet.single is None
    assert drawn("conv4a").picture.shape[1] > sheet.picture.shape[1]


@pytest.mark.parametrize("tap", ["conv1a", "conv4a"])
def test_small_receptive_fields_are_shown_as_patches(tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, patch = [], ReceptiveField.cut
    monkeypatch.setattr(ReceptiveField, "cut", lambda *args: (cut.append(args), patch(*args))[1])
    drawn(tap, units=(2,))
    assert len(cut) == (3 if tap == "conv1a" else 0)  # three levels


def test_a_silent_unit_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = SparseAutoencoder(32, 1)
    sae.encoder_weight.data.zero_()
    sae.encoder_bias.data.fill_(-1.0)
    captions = []
    monkeypatch.setattr(feature_sheet, "Tile", lambda image, caption: captions.append(caption))
    drawn("conv4a", sae, units=(0,))
    assert captions == ["could not be driven"] * 2 + [
        "never active  level 1",
        "never active  level 2",
        "never active  level 3",
    ]
