"""Both contestants play the same mazes with the same edit."""

import torch

from benchmarks.interventions import edit_by_row, edit_of, mazes, play
from environments import State
from networks import CustomCNN


def test_both_play_the_same_mazes_with_an_edit_that_changes_a_little():
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    states = mazes(6)
    assert len({State.from_bytes(state).level_seed for state in states}) == 6
    edits = [edit_of(agent)]
    frames = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, edited = agent(frames).logits, agent(frames, edits=edits).logits
    assert not torch.equal(plain, edited)
    torch.testing.assert_close(plain, edited, atol=0.05, rtol=0.05)
    speed, together = play(agent, states, edits, 6)
    _, alone = play(agent, states, edits, 1)
    assert speed > 0
    assert len(together.touched) == len(alone.touched) == 6
    assert together.steps.min() >= 1


def test_edits_by_row_differ_from_episode_to_episode():
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    states = mazes(3)
    tap, edit = edit_by_row(agent, 3)
    edit.assign(torch.arange(3))
    acts = torch.zeros(3, *agent.taps[tap])
    assert torch.equal(edit(acts).flatten(1).sum(1), torch.ones(3))
    assert len({tuple(row.nonzero()[0].tolist()) for row in edit(acts)}) == 3
    assert len(play(agent, states, [(tap, edit)], 2, by_row=True)[1].touched) == 3
