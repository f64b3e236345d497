"""PPO as it is usually written: fp32, eager, `nn.LPPool2d`, NCHW floats, one loop. The baseline of `benchmarks.ppo`."""

import numpy as np
import torch
from procgen import ProcgenGym3Env
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from environments import TRAINING_COUNT, TRAINING_START


class PlainCNN(nn.Module):
    """The network of `networks.CustomCNN`, without taps, edits or anything done for speed."""

    def __init__(self, num_actions: int = 15) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, width, padding=width // 2), nn.ReLU()]

        pool = nn.LPPool2d(2, 2, 2)
        self.body = nn.Sequential(
            *convolution(3, 16, 7), pool,
            *convolution(16, 32, 5), *convolution(32, 32, 5), pool,
            *convolution(32, 32, 5), pool,
            *convolution(32, 32, 5), pool,
            nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(),
        )  # fmt: skip
        self.policy, self.value = nn.Linear(512, num_actions), nn.Linear(512, 1)

    def forward(self, frames: Tensor) -> tuple[Categorical, Tensor]:
        hidden = self.body(frames)
        return Categorical(logits=self.policy(hidden)), self.value(hidden).squeeze(-1)


class PlainPPO:
    """Heist, easy, all training levels, with the recipe of `configs/ppo_impala.yaml` but for its reward scaling and the
    clip of the value loss.

    Args:
        device: where the network runs.
        environments, steps, epochs, minibatches: N, T, passes and minibatches a pass.
    """

    def __init__(self, device: torch.device, environments: int, steps: int, epochs: int, minibatches: int) -> None:
        self.device, self.steps, self.epochs, self.minibatches = device, steps, epochs, minibatches
        self.env = ProcgenGym3Env(
            num=environments, env_name="heist", distribution_mode="easy", start_level=TRAINING_START,
            num_levels=TRAINING_COUNT, rand_seed=0, num_threads=2,
        )  # fmt: skip
        self.net = PlainCNN().to(device)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=5e-4, eps=1e-5)

    def observe(self) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Reward, frames as NCHW floats, and which of them begin an episode."""
        reward, seen, first = self.env.observe()
        return reward, torch.from_numpy(seen["rgb"]).to(self.device).permute(0, 3, 1, 2).float() / 255, first

    @torch.no_grad()
    def act(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions with their log-probabilities, and values."""
        policy, value = self.net(frames)
        action = policy.sample()
        return action, policy.log_prob(action), value

    def rollout(self) -> tuple[Tensor, ...]:
        """Frames, actions, log-probabilities, advantages and returns of T x N steps."""
        frames, actions, log_probs, values, rewards, firsts = [], [], [], [], [], []
        _, seen, _ = self.observe()
        for _ in range(self.steps):
            action, log_prob, value = self.act(seen)
            frames.append(seen)
            actions.append(action)
            log_probs.append(log_prob)
            values.append(value)
            self.env.act(action.cpu().numpy().astype(np.int32))
            reward, seen, first = self.observe()
            rewards.append(torch.from_numpy(reward.copy()).to(self.device))
            firsts.append(torch.from_numpy(first.copy()).to(self.device))
        following, advantage, advantages = self.act(seen)[2], torch.zeros_like(values[0]), []
        for t in reversed(range(self.steps)):
            goes_on = 1 - firsts[t].float()
            advantage = rewards[t] + 0.999 * goes_on * following - values[t] + 0.999 * 0.95 * goes_on * advantage
            advantages.append(advantage)
            following = values[t]
        gains = torch.stack(advantages[::-1]).flatten()
        returns = gains + torch.stack(values).flatten()
        gains = (gains - gains.mean()) / (gains.std() + 1e-8)
        return torch.cat(frames), torch.cat(actions), torch.cat(log_probs), gains, returns

    def update(self, frames: Tensor, actions: Tensor, log_probs: Tensor, gains: Tensor, returns: Tensor) -> None:
        """All passes over one rollout."""
        for _ in range(self.epochs):
            for rows in torch.randperm(len(actions), device=self.device).chunk(self.minibatches):
                policy, value = self.net(frames[rows])
                ratio = (policy.log_prob(actions[rows]) - log_probs[rows]).exp()
                surrogate = torch.minimum(ratio * gains[rows], ratio.clamp(0.8, 1.2) * gains[rows]).mean()
                value_loss = functional.mse_loss(value, returns[rows])
                loss = 0.25 * value_loss - surrogate - 0.01 * policy.entropy().mean()
                self.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
                self.optimiser.step()
