import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings
from environments.heist import label_states
from interpretability.ablations import ZeroAblation
from interpretability.episode_film import episode_film
from interpretability.episode_page import heat_levels, sprite_sheet
from interpretability.observed_episode import ACTION_ARROWS, COMPASS, check_shown, most_varying, observe_episode
from interpretability.replay import replay
from networks import CustomCNN, SparseAutoencoder


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    agent.fc3.weight.data *= 50
    return agent


@pytest.fixture(scope="module")
def played():
    return replay(1, [7, 7, 5, 3, 1, 8, 4, 13], EnvironmentSettings())


def by_hand(agent, frames, tap, edits=()):
    with torch.no_grad():
        output = agent(torch.from_numpy(frames), record=(tap,), edits=edits)
    shares = output.logits.softmax(-1).numpy()
    shares = np.concatenate([shares[:, :9], shares[:, 9:].sum(1, keepdims=True)], axis=1)
    return shares, output.value.numpy(), output.activations[tap].numpy()


def test_both_arms_are_the_agents_own_answers_on_the_same_frames(agent, played):
    edits = [("conv3a", ZeroAblation())]
    shown = {"conv4a": 3, "conv2a": [5, 1]}
    labels = label_states(played.states)
    episode = observe_episode(agent, played, shown, edits=edits, labels=labels, precision="fp32")
    assert [arm.name for arm in episode.arms] == ["untouched", "edited"]
    for arm, put_in in zip(episode.arms, ([], edits), strict=True):
        shares, values, maps = by_hand(agent, played.frames, "conv4a", put_in)
        np.testing.assert_allclose(arm.probabilities, shares, atol=1e-5)
        np.testing.assert_allclose(arm.values, values, atol=1e-5)
        np.testing.assert_allclose(arm.maps["conv4a"], maps[:, episode.units["conv4a"]], atol=1e-4)
    _, _, maps = by_hand(agent, played.frames, "conv4a")
    assert episode.units == {"conv4a": np.argsort(-maps.var((0, 2, 3)))[:3].tolist(), "conv2a": [5, 1]}
    clean, edited = (arm.probabilities for arm in episode.arms)
    expected = (clean * np.log(clean / edited)).sum(1)
    np.testing.assert_allclose(episode.divergence(), expected, atol=1e-4)
    assert expected.max() > 0.01
    assert (episode.limits("conv4a")[0][0], len(episode.limits("conv2a"))) == (0, 2)


def test_latents_are_those_of_the_untouched_activation(agent, played):
    sae = SparseAutoencoder(32)
    sae.tap = "conv4a"
    episode = observe_episode(agent, played, {"sae": [3, 70]}, edits=[("conv4a", sae)], sae=sae, precision="fp32")
    with torch.no_grad():
        latents = sae.encode(torch.from_numpy(by_hand(agent, played.frames, "conv4a")[2]))[:, [3, 70]].numpy()
    for arm in episode.arms:
        np.testing.assert_allclose(arm.maps["sae"], latents, atol=1e-4)


def test_leaves_modes_and_generators_alone(agent, played):
    state, edit = torch.get_rng_state(), nn.Dropout().train()
    observe_episode(agent, played, {"conv4a": 1}, edits=[("conv4a", edit)])
    assert torch.equal(state, torch.get_rng_state())
    assert edit.training


def test_most_varying_units_come_first():
    maps = torch.zeros(4, 3, 2, 2)
    maps[0, 2], maps[1, 0], maps[:, 1] = 5.0, 1.0, 9.0  # a large constant does not vary
    assert most_varying(maps, 2) == [2, 0]


def test_the_compass_lies_as_the_moves_do():
    for place, action in enumerate(COMPASS):
        assert (action // 3 - 1, action % 3 - 1) == (place % 3 - 1, 1 - place // 3)
    assert [ACTION_ARROWS[action] for action in COMPASS] == ["↖", "↑", "↗", "←", "•", "→", "↙", "↓", "↘"]


def test_sprites_are_cut_out_again_where_the_page_looks():
    tiles = np.random.default_rng(0).integers(0, 256, (7, 4, 6), dtype=np.uint8)
    picture, columns = sprite_sheet(tiles)
    assert picture.mode == "P"
    sheet = np.asarray(picture)
    for number, tile in enumerate(tiles):
        top, left = 4 * (number // columns), 6 * (number % columns)
        assert np.array_equal(sheet[top : top + 4, left : left + 6], tile)
    colours = np.random.default_rng(1).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(sprite_sheet(colours)[0])[:4, 6:12], colours[1])


def test_heat_runs_from_the_lower_to_the_upper_limit():
    maps = np.array([[[[-1.0, 0.0, 3.0]], [[0.0, 5.0, 10.0]]]])
    levels = heat_levels(maps, [(-1.0, 3.0), (0.0, 10.0)])
    assert levels.tolist() == [[[[0, 64, 255]], [[0, 128, 255]]]]


def test_a_film_has_a_picture_a_step(agent, played):
    episode = observe_episode(agent, played, {"conv4a": 2}, edits=[("conv4a", ZeroAblation())])
    film = episode_film(episode, "a title")
    assert len(film.frames) == 8
    clean = episode_film(observe_episode(agent, played, {"conv4a": 2}), "a title")
    assert film.frames.shape[1] > clean.frames.shape[1], "maps that an edit changes have a row of their own"


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"conv9": 1}, "no tap 'conv9'"),
        ({"fc1": 1}, "fc1 has no map"),
        ({"conv4a": 33}, "32 units"),
        ({"conv4a": [0, 32]}, r"\[32\] is beyond"),
        ({"sae": 1}, "give the autoencoder's file"),
    ],
)
def test_what_cannot_be_shown_is_refused(agent, shown, message):
    with pytest.raises(ValueError, match=message):
        check_shown(agent, None, shown)
