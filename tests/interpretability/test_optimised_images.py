import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from interpretability.colour import ColourMoments, ColourStatistics
from interpretability.image_objectives import LayerDirection, Unit, difference
from interpretability.opened_relu import OpenedReLU
from interpretability.optimised_images import Inside, OptimisationSettings, OptimisedImages, optimise_images
from interpretability.parametrisations import FourierImages, Parametrisation
from networks import BilinearImpala, CustomCNN, SparseAutoencoder, TappedAgent
from networks.taps import Step

# a planted answer is told from another one soon; pictures for people take longer
QUICK = OptimisationSettings(steps=48, starts=8)
STEADY = OptimisationSettings(steps=96, starts=8)


class Planted(TappedAgent):
    """One layer of filters that each look at a block of 32 x 32 pixels; what drives them most is known."""

    def __init__(self, filters: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, len(filters), 32, stride=32)
        self.filters.weight.data.copy_(filters)
        self.filters.bias.data.fill_(bias)
        self.actor, self.critic = nn.Linear(4 * len(filters), 15), nn.Linear(4 * len(filters), 1)
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "seen.pre", self.filters
        yield "seen", torch.relu
        yield "flat", lambda acts: acts.flatten(1)

    def heads(self) -> tuple[Step, Step]:
        return self.actor, self.critic

    def config(self) -> dict[str, int | float | bool | str]:
        return {}


def filters() -> Tensor:
    """A patch (bright square on dark), an orientation (a diagonal edge) and a colour edge, [3 3 32 32]: what drives
    each most is bright exactly where it is positive."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    square = torch.where(((y - 15.5).abs() < 11) & ((x - 15.5).abs() < 11), 1.0, -1.0).expand(3, 32, 32)
    diagonal = torch.where(y + x < 31, 1.0, -1.0).expand(3, 32, 32)
    left_right = torch.where(x < 16, 1.0, -1.0)
    # red and no blue on the left, the reverse on the right; green does not matter
    colour = torch.stack([left_right, torch.zeros(32, 32), -left_right])
    return torch.stack([square, diagonal, colour]) / 100


def game_colours() -> ColourStatistics:
    """Colours that mostly vary together, as heist's do."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(4, 64, 64, 1, generator=generator)
    noise = torch.rand(4, 64, 64, 3, generator=generator)
    moments = ColourMoments()
    moments.update(((0.7 * light + 0.3 * noise) * 255).to(torch.uint8))
    return moments.statistics()


def correlation(image: Tensor, wanted: Tensor) -> float:
    pair = torch.stack([image.flatten().float(), wanted.flatten()])
    return float(pair.corrcoef()[0, 1])


@pytest.mark.parametrize("bias", [0.0, -1000.0])
def test_images_of_planted_filters_are_what_they_like(bias: float) -> None:
    """Also where a bias silences them on every image that noise can make: then the gradient comes from before it."""
    wanted = filters()
    places = [(0, 0), (0, 1), (1, 0)]
    units = [Unit(number, place) for number, place in enumerate(places)]
    found = optimise_images(Planted(wanted, bias), "seen", units, game_colours(), settings=STEADY, precision="fp32")
    for image, target, (y, x) in zip(found.images, wanted, places, strict=True):
        block = image[32 * y : 32 * y + 32, 32 * x : 32 * x + 32].permute(2, 0, 1)
        matters = target != 0
        assert correlation(block[matters], target[matters]) >= 0.9
    assert found.driven.tolist() == [bias == 0] * 3


def test_the_mean_of_a_map_fills_the_frame() -> None:
    warm = torch.tensor([1.0, 0.0, -1.0])[:, None, None].expand(1, 3, 32, 32)
    found = optimise_images(Planted(warm / 100), "seen", [Unit(0)], game_colours(), settings=STEADY, precision="fp32")
    red, green, blue = found.images[0].float().unbind(-1)
    assert red.quantile(0.05) > 150
    assert blue.quantile(0.95) < 100
    assert 60 < green.mean() < 200


def test_what_is_reported_is_reached_by_the_image_shown() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    sae = SparseAutoencoder(32, 2)
    units = [Unit(5), Unit(5, (3, 4)), Unit(63)]
    settings = OptimisationSettings(steps=2, starts=3)
    found = optimise_images(agent, "conv4a", units, game_colours(), sae=sae, settings=settings, precision="fp32")
    with torch.no_grad():
        latents = sae.encode(agent(found.images, record=("conv4a",), outputs=False).activations["conv4a"])
    own = latents[[0, 1, 2], [5, 5, 63]]
    torch.testing.assert_close(found.achieved, torch.stack([own[0].mean(), own[1, 3, 4], own[2].mean()]))
    torch.testing.assert_close(found.peak, own.amax((1, 2)))


def test_products_are_driven_themselves_and_not_rectified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bilinear network's `.pre` holds two maps: neither is what the product likes, and no ReLU is to be opened."""

    def refuse(*_: object) -> None:
        raise AssertionError("a product was taken for a ReLU")

    monkeypatch.setattr(OpenedReLU, "forward", refuse)
    torch.manual_seed(0)
    agent = BilinearImpala().eval()
    found = optimise_images(agent, "conv2a", [Unit(1), Unit(31)], game_colours(), settings=QUICK, precision="fp32")
    assert found.driven.all()
    with pytest.raises(ValueError, match="conv2a has 32 units"):
        optimise_images(agent, "conv2a", [Unit(32)], game_colours(), settings=QUICK, precision="fp32")


class Silent(Planted):
    """Every hidden unit is silent on every image that noise can make."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 2, 1)
        y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        board = torch.where((y // 4 + x // 4) % 2 == 0, 0.01, -0.01)
        self.first.weight.data.copy_(board.expand(4, 3, 8, 8))
        nn.init.constant_(self.first.bias, -0.4)  # a board of black and white gives .96
        nn.init.constant_(self.second.weight, 1.0)
        self.second.weight.data[1] = -1.0
        nn.init.constant_(self.second.bias, 0.0)
        self.actor, self.critic = nn.Linear(128, 15), nn.Linear(128, 1)
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "first.pre", self.first
        yield "first", torch.relu
        yield "second.pre", self.second
        yield "second", torch.relu
        yield "flat", lambda acts: acts.flatten(1)


def test_blocked_gradients_are_opened_and_what_cannot_be_driven_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [Unit(0, (4, 4)), Unit(1, (4, 4))]  # the second is never above zero

    def driven() -> list[bool]:
        found = optimise_images(Silent(), "second", units, game_colours(), settings=QUICK, precision="fp32")
        assert found.images.float().std() > 0
        return found.driven.tolist()

    assert driven() == [True, False]
    monkeypatch.setattr(OpenedReLU, "forward", lambda self, acts: acts)
    assert driven() == [False, False]


def test_opened_relu_redirects_only_what_is_nearly_all_blocked() -> None:
    acts = torch.tensor([[-1.0, -1.0, 2.0], [-1.0, -1.0, -2.0], [-1.0, -1.0, 2.0]], requires_grad=True)
    opened = OpenedReLU()(acts).relu()
    torch.testing.assert_close(opened, acts.relu(), atol=1e-5, rtol=0)
    # descending this loss raises the first column and lowers the others; the last row's active entry hardly matters
    weights = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, 1.0, 0.01]])
    (gradient,) = torch.autograd.grad((opened * weights).sum(), acts)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.01]]))


def test_flat_taps_logits_and_values_can_be_seen() -> None:
    settings = OptimisationSettings(steps=2, starts=2)
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    for tap, number in (("fc1", 255), ("fc2.pre", 0), ("logits", 14), ("value", 0)):
        found = optimise_images(agent, tap, [Unit(number)], game_colours(), settings=settings)
        assert found.images.shape == (1, 64, 64, 3)
        assert found.achieved.equal(found.peak)


def test_gradients_random_state_and_inference_mode_do_not_matter() -> None:
    torch.manual_seed(0)
    agent = CustomCNN()
    settings = OptimisationSettings(steps=2, starts=2)
    agent.conv1a.weight.grad = torch.ones_like(agent.conv1a.weight)
    state = torch.get_rng_state()
    first = optimise_images(agent, "conv2a", [Unit(0)], game_colours(), settings=settings)
    with torch.inference_mode():
        second = optimise_images(agent, "conv2a", [Unit(0)], game_colours(), settings=settings)
    assert first.images.equal(second.images)
    assert torch.get_rng_state().equal(state)
    assert agent.conv1a.weight.grad.eq(1).all()
    assert all(parameter.grad is None for name, parameter in agent.named_parameters() if name != "conv1a.weight")
    assert all(parameter.requires_grad for parameter in agent.parameters())


def test_faults_are_named() -> None:
    agent = CustomCNN()
    with pytest.raises(ValueError, match="at least one"):
        optimise_images(agent, "conv4a", [], game_colours())
    with pytest.raises(ValueError, match="has no tap 'conv9'"):
        optimise_images(agent, "conv9", [Unit(0)], game_colours())
    for unit in (Unit(32), Unit(0, (8, 0)), Unit(0, (0, -1))):
        with pytest.raises(ValueError, match="conv4a has 32 units on maps of 8 x 8"):
            optimise_images(agent, "conv4a", [unit], game_colours())
    with pytest.raises(ValueError, match="steps and starts"):
        OptimisationSettings(steps=0)
    with pytest.raises(ValueError, match="must not be negative"):
        OptimisationSettings(jitter=-1)


def test_pixels_find_a_planted_filter() -> None:
    settings = dataclasses.replace(STEADY, parametrisation="pixel")
    units = [Unit(0, (0, 0))]
    found = optimise_images(Planted(filters()), "seen", units, game_colours(), settings=settings, precision="fp32")
    assert correlation(found.images[0, :32, :32].permute(2, 0, 1), filters()[0]) >= 0.9


def test_phases_find_a_planted_filter_with_the_magnitudes_of_the_game() -> None:
    """Fixed magnitudes leave an image less than its filter's likeness, but far more than noise has."""
    moments = ColourMoments(magnitudes=True)
    noise = FourierImages(50, game_colours(), 1.5, torch.Generator().manual_seed(1))
    moments.update((noise.as_shown() * 255).round().to(torch.uint8))
    settings = dataclasses.replace(STEADY, parametrisation="phase")
    units = [Unit(0, (0, 0))]
    found = optimise_images(
        Planted(filters()), "seen", units, moments.statistics(), settings=settings, precision="fp32"
    )
    assert correlation(found.images[0, :32, :32].permute(2, 0, 1), filters()[0]) >= 0.7


@pytest.mark.parametrize("parametrisation", ["fourier", "pixel"])
def test_an_ascent_goes_on_from_the_entries_of_another(parametrisation: Parametrisation) -> None:
    agent, units = Planted(filters()), [Unit(0, (0, 0)), Unit(1, (1, 1))]
    few = dataclasses.replace(QUICK, parametrisation=parametrisation, steps=4, jitter=0, turn=0, scale=0)

    def images(settings: OptimisationSettings, begin: Tensor | None) -> OptimisedImages:
        return optimise_images(
            agent, "seen", units, game_colours(), begin=begin, settings=settings, precision="fp32"
        )  # fmt: skip

    first = images(few, None)
    still = images(dataclasses.replace(few, learning_rate=1e-9), first.entries)
    assert still.images.equal(first.images)
    later = images(few, first.entries)
    assert (later.achieved > first.achieved * 1.05).all()
    with pytest.raises(ValueError, match="entries to go on from"):
        images(few, first.entries[:1])


def test_a_difference_shows_what_only_one_of_two_likes() -> None:
    warm = torch.tensor([1.0, 1.0, -1.0])[:, None, None].expand(3, 32, 32)
    bright = torch.tensor([1.0, 1.0, 0.0])[:, None, None].expand(3, 32, 32)
    agent = Planted(torch.stack([warm, bright]) / 100)
    found = optimise_images(agent, "seen", [difference(0, 1, 2)], game_colours(), settings=STEADY, precision="fp32")
    assert found.images[0, ..., 2].float().quantile(0.95) < 60  # no blue; of the rest both have as much


def test_only_the_part_of_a_frame_that_is_asked_for_changes() -> None:
    frame = torch.full((64, 64, 3), 90, dtype=torch.uint8)
    mask = torch.zeros(64, 64)
    mask[:32, :32] = 1
    found = optimise_images(
        Planted(filters()),
        "seen",
        [Unit(0, (0, 0))],
        game_colours(),
        inside=Inside(frame, mask),
        settings=STEADY,
        precision="fp32",
    )
    assert (found.images[0][mask == 0] == 90).all()
    assert correlation(found.images[0, :32, :32].permute(2, 0, 1), filters()[0]) >= 0.9
    with pytest.raises(ValueError, match="0 to 1, somewhere above 0"):
        optimise_images(Planted(filters()), "seen", [Unit(0)], game_colours(), inside=Inside(frame, mask * 0))


def test_diverse_images_of_one_objective_differ_in_what_they_show() -> None:
    """The objective likes either of two things: without diversity all images show the same one."""
    patches = filters()[:2]
    agent = Planted(patches)
    both = LayerDirection(torch.tensor([1.0, 0.9]), (0, 0))

    def spread(diversity: float) -> float:
        settings = OptimisationSettings(steps=96, starts=8, diversity=diversity)
        found = optimise_images(agent, "seen", [both] * 4, game_colours(), settings=settings, precision="fp32")
        with torch.no_grad():
            acts = agent(found.images, record=("seen",)).activations["seen"][:, :, 0, 0]
        share = acts[:, 0] / acts.sum(1)
        return float(share.max() - share.min())

    assert spread(3.0) > spread(0.0) + 0.1
