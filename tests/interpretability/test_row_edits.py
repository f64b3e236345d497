import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import choice_maze
from interpretability.choices import play_choices
from interpretability.episodes import first_states, play_episodes
from interpretability.row_edits import MapEdit, MatchedNoise
from networks import CustomCNN, DecisionTransformer, SparseAutoencoder

EASY = EnvironmentSettings()
TRIALS = 3


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


def map_edit(sae=None) -> MapEdit:
    generator = torch.Generator().manual_seed(1)
    return MapEdit(
        torch.tensor([[0, 5], [7, 2], [31, 30]]),
        torch.rand(TRIALS, 8, 8, generator=generator) < 0.5,
        5 * torch.rand(TRIALS, 2, 8, 8, generator=generator),
        sae,
    )


def test_each_row_undergoes_its_own_trial():
    edit, acts = map_edit(), torch.rand(4, 32, 8, 8)
    edit.assign(torch.tensor([2, 0, 0, 1]))
    expected = acts.clone()
    for row, trial in enumerate([2, 0, 0, 1]):
        for place, unit in enumerate(edit.units[trial].tolist()):
            for y in range(8):
                for x in range(8):
                    kept = acts[row, unit, y, x] if edit.keep[trial, y, x] else 0.0
                    expected[row, unit, y, x] = kept + edit.put[trial, place, y, x]
    assert torch.allclose(edit(acts), expected)


def test_of_latents_only_their_change_is_added():
    torch.manual_seed(0)
    sae = SparseAutoencoder(32, 1)
    edit, acts = map_edit(sae), torch.rand(3, 32, 8, 8)
    edit.assign(torch.arange(3))
    plain = map_edit()
    plain.assign(torch.arange(3))
    with torch.no_grad():
        latents = sae.encode(acts)
        added = torch.einsum("fc,bfhw->bchw", sae.directions()[:, :, 0, 0], plain(latents) - latents)
        assert torch.allclose(edit(acts) - acts, added, atol=1e-4)
    assert not list(edit.parameters())


def test_noise_is_as_large_as_the_change_of_each_row():
    noise = MatchedNoise(map_edit(), (32, 8, 8), patterns=2)
    acts = torch.rand(3, 32, 8, 8)
    noise.assign(torch.arange(3))
    sizes = (noise(acts) - acts).flatten(1).norm(dim=1)
    assert torch.allclose(sizes, (noise.edit(acts) - acts).flatten(1).norm(dim=1), rtol=1e-4)
    directions = (noise(acts) - acts) / sizes.view(-1, 1, 1, 1)
    assert torch.allclose(directions[0], directions[2], atol=1e-5)
    assert not torch.allclose(directions[0], directions[1], atol=1e-2)


def test_plays_many_trials_as_it_plays_each_alone(agent):
    bases = [State.from_bytes(data) for data in first_states(range(4), EASY)]
    states = [choice_maze(base, np.random.default_rng(0), distances=(1, 1)).to_bytes() for base in bases]
    agent.fc3.weight.data *= 10  # a policy that an edit sways
    known = {"settings": EASY, "seed": 3, "max_steps": 12, "precision": "fp32"}
    trials = np.repeat(np.arange(TRIALS), len(states))
    together = play_choices(
        agent, states * TRIALS, edits=[("conv4a", map_edit())], trials=trials, num_environments=5, **known
    )
    levels = [0, 1] * TRIALS
    of = np.repeat(np.arange(TRIALS), 2)
    episodes = play_episodes(
        agent, levels, edits=[("conv4a", map_edit())], trials=of, num_environments=3, **known
    )  # fmt: skip
    assert episodes.levels.tolist() == levels
    whole = map_edit()
    for trial in range(TRIALS):
        one = MapEdit(whole.units[[trial]], whole.keep[[trial]], whole.put[[trial]])
        alone = play_choices(agent, states, edits=[("conv4a", one)], trials=[0] * 4, num_environments=4, **known)
        rows = np.flatnonzero(trials == trial)
        assert [together.actions[row] for row in rows] == alone.actions
        assert together.touched[rows].tolist() == alone.touched.tolist()
        naive = play_episodes(agent, [0, 1], edits=[("conv4a", one)], trials=[0, 0], **known)
        assert naive.lengths.tolist() == episodes.lengths[of == trial].tolist()
    assert together.actions[: len(states)] != together.actions[len(states) : 2 * len(states)]


def test_a_stuck_frame_is_looked_at_again_under_another_trial(agent):
    """The slot's last frame is the next trial's first one: what was computed for it no longer holds."""

    class Constant(MapEdit):
        def forward(self, acts):
            return torch.nn.functional.one_hot(self.trials * 4 + 4, 15) * 100.0

    state = first_states([0], EASY) * 2
    edit = Constant(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, 1, dtype=torch.bool))
    played = play_choices(
        agent, state, settings=EASY, edits=[("logits", edit)], trials=[0, 1], num_environments=1, max_steps=2
    )
    assert played.actions == [[4, 4], [8, 8]]


def test_trials_share_one_compilation(agent):
    torch.compiler.reset()
    compiled = torch.compile(agent.forward, backend="eager", dynamic=False, fullgraph=True)
    edit = map_edit()
    frames = torch.rand(3, 64, 64, 3)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        outputs = []
        for trials in ([0, 1, 2], [2, 2, 1], [1, 0, 0]):
            edit.assign(torch.tensor(trials))
            outputs.append(compiled(frames, edits=[("conv4a", edit)]).logits)
    assert not torch.allclose(outputs[0], outputs[1])


def test_refuses_trials_that_do_not_fit(agent):
    state, edits = first_states([0], EASY), [("conv4a", map_edit())]
    with pytest.raises(ValueError, match="for each of 1 episodes which trial it undergoes, got none"):
        play_choices(agent, state, settings=EASY, edits=edits)
    with pytest.raises(ValueError, match="got 2"):
        play_choices(agent, state, settings=EASY, edits=edits, trials=[0, 1])
    with pytest.raises(ValueError, match="from 0 to 2"):
        play_choices(agent, state, settings=EASY, edits=edits, trials=[3])
    with pytest.raises(ValueError, match="remembers"):
        play_episodes(DecisionTransformer(), [0], settings=EASY, edits=[("logits", map_edit())], trials=[0])
    with pytest.raises(ValueError, match="distinct"):
        play_episodes(agent, [0, 0], settings=EASY, edits=edits, trials=[1, 1])
