"""Intervened episodes a second: the shipped agent, edited, in mazes of choices, against one environment at a time.

An episode ends at the first touch of a key or the gem, or after 100 steps. Both play the same mazes with the same edit
and noise. `by_row` is the same with another edit in every environment, as scans of units and ablations play. What the
agent does after the edit is lifted is timed apart, as episodes a second to the gem or the end of `--finish_steps`. The
floor is what the network's arithmetic alone would take for the frames that were played, at the speed of a large
bfloat16 matrix product.
"""

import argparse
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, peak_flops, report, say
from commands import quieten
from environments import EnvironmentSettings, held_out_levels
from interpretability.choices import Choices, play_choices, play_to_end
from interpretability.episodes import first_states
from interpretability.row_edits import MapEdit
from networks import Edit, TappedAgent, load_agent
from networks.channel_edit import RepaintEdit
from studies.retargeting_search import choice_mazes

SETTINGS = EnvironmentSettings("heist", "easy")


def mazes(count: int) -> list[bytes]:
    """Saved states of mazes of choices, one a validation level."""
    bases = first_states(held_out_levels("validation", count), SETTINGS)
    return [maze.to_bytes() for maze, _ in choice_mazes(bases, 0, (2, 6))]


def edit_of(agent: TappedAgent) -> Edit:
    """A repainting edit of the first pool that changes a little: as costly as one that was fitted."""
    edit = RepaintEdit(agent.taps["pool1"][0], 32)
    torch.nn.init.normal_(edit.write.weight, std=1e-3, generator=torch.Generator().manual_seed(0))
    return "pool1", edit.requires_grad_(False).eval()


def edit_by_row(agent: TappedAgent, episodes: int) -> Edit:
    """A peak of a channel of conv4a, another channel and place in each episode."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = agent.taps["conv4a"]
    units = torch.randint(channels, (episodes, 1), generator=generator)
    places = torch.randint(height * width, (episodes,), generator=generator)
    put = torch.nn.functional.one_hot(places, height * width).view(-1, 1, height, width).float()
    return "conv4a", MapEdit(units, torch.zeros(episodes, height, width, dtype=torch.bool), put)


def play(
    agent: TappedAgent, states: list[bytes], edits: list[Edit], slots: int, by_row: bool = False
) -> tuple[float, Choices]:
    """Episodes a second, and what was touched; by row, each state undergoes the trial of its own number."""
    trials = range(len(states)) if by_row else None
    start = time.perf_counter()
    played = play_choices(agent, states, settings=SETTINGS, edits=edits, trials=trials, num_environments=slots)
    return len(states) / (time.perf_counter() - start), played


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="pretrained/heist_easy_customcnn_seed0.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--episodes", type=int, default=1_000)
    parser.add_argument("--one_by_one", type=int, default=60, help="episodes of one environment at a time")
    parser.add_argument("--num_environments", type=int, default=128)
    parser.add_argument("--finish_steps", type=int, default=200)
    arguments = parser.parse_args()
    quieten()
    device = torch.device(arguments.device)
    agent = load_agent(arguments.agent).to(device)
    tap, module = edit_of(agent)
    edits: list[Edit] = [(tap, module.to(device))]
    states = mazes(arguments.episodes)
    say(f"{len(states)} episodes in {arguments.num_environments} environments")
    play(agent, states[: arguments.num_environments], edits, arguments.num_environments)  # chooses kernels
    ours, played = play(agent, states, edits, arguments.num_environments)
    say(f"{ours:.1f} episodes/s; as many, each under its own edit")
    own_tap, own = edit_by_row(agent, len(states))
    by_row, _ = play(agent, states, [(own_tap, own.to(device))], arguments.num_environments, by_row=True)
    say(f"{by_row:.1f} episodes/s; {arguments.one_by_one} episodes one at a time")
    baseline, _ = play(agent, states[: arguments.one_by_one], edits, 1)
    lifted = [state for state in played.after if state]
    say(f"{baseline:.2f} episodes/s; {len(lifted)} episodes on to their end")
    start = time.perf_counter()
    play_to_end(
        agent, lifted, settings=SETTINGS, num_environments=arguments.num_environments, max_steps=arguments.finish_steps
    )
    finishing = len(lifted) / (time.perf_counter() - start)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        agent(torch.zeros(1, 64, 64, 3, device=device), edits=edits)
    floor = peak_flops(device, torch.bfloat16) / counter.get_total_flops() / float(np.mean(played.steps))
    report(
        name="interventions",
        ours=round(ours, 1),
        baseline=round(baseline, 2),
        ratio=round(ours / baseline, 2),
        unit="episodes/s",
        floor=round(floor, 1),
        steps_per_episode=round(float(np.mean(played.steps)), 1),
        by_row=round(by_row, 1),
        finishing=round(finishing, 2),
        episodes=len(states),
        num_environments=arguments.num_environments,
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
