"""A decision transformer as the paper's code goes about it: fp32, eager, attention spelt out, NCHW floats, and at every
step of play the whole window anew. The baseline of `benchmarks.decision_transformer`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain_ppo import PlainCNN


class PlainAttention(nn.Module):
    """Masked attention of several heads, with the whole matrix of scores."""

    mask: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.key, self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads
        self.register_buffer("mask", torch.tril(torch.ones(length, length))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        mixed = functional.softmax(scores, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, width))


class PlainBlock(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PlainAttention(width, heads, length)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainDecisionTransformer(nn.Module):
    """Return, observation and action tokens in turn; the action is read at the observation.

    Without dropout, which `networks.DecisionTransformer` has not either.

    Args:
        width, depth, heads, context: sizes.
        encode: whether it is given frames; if not, their features (256 of each).
    """

    def __init__(self, width: int, depth: int, heads: int, context: int, encode: bool, num_actions: int = 15) -> None:
        super().__init__()
        self.encode = encode
        if encode:
            self.encoder = nn.Sequential(*list(PlainCNN().body)[:-2])  # to the first hidden layer
        self.observation = nn.Sequential(nn.Linear(256, width), nn.Tanh())
        self.returns = nn.Sequential(nn.Linear(1, width), nn.Tanh())
        self.actions = nn.Sequential(nn.Embedding(num_actions, width), nn.Tanh())
        self.time = nn.Embedding(1000, width)
        self.blocks = nn.Sequential(*(PlainBlock(width, heads, 3 * context) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_actions, bias=False)

    def embed(self, seen: Tensor) -> Tensor:
        """Observation tokens [B T D] of frames [B T 3 64 64] in 0 to 1, or of features [B T 256]."""
        if self.encode:
            seen = self.encoder(seen.reshape(-1, *seen.shape[2:])).reshape(*seen.shape[:2], -1)
        return self.observation(seen)

    def think(self, observations: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor) -> Tensor:
        """Logits [B T A]."""
        batch, steps, width = observations.shape
        time = self.time(timesteps)
        tokens = torch.stack(
            [self.returns(returns[..., None]) + time, observations + time, self.actions(actions) + time], dim=2
        )
        x = self.norm(self.blocks(tokens.reshape(batch, 3 * steps, width)))
        return self.head(x[:, 1::3])

    def forward(self, seen: Tensor, actions: Tensor, returns: Tensor, timesteps: Tensor) -> Tensor:
        return self.think(self.embed(seen), actions, returns, timesteps)


def train_step(
    network: PlainDecisionTransformer,
    optimiser: torch.optim.Optimizer,
    seen: Tensor,
    actions: Tensor,
    returns: Tensor,
    timesteps: Tensor,
) -> float:
    """One step of AdamW on a batch; frames as uint8 [B T 64 64 3]."""
    if network.encode:
        seen = seen.permute(0, 1, 4, 2, 3).float() / 255
    logits = network(seen, actions, returns, timesteps)
    loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), actions.reshape(-1))
    network.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return loss.item()
