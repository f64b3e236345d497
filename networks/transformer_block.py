"""A pre-norm transformer block on steps of a few tokens each, with taps, and the memory with which it is played."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional

from networks.taps import TapPass

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as in Radford et al. (2019); no dropout.

    Args:
        width: of the residual stream.
        heads: of the attention; they share the width.
        mlp_width: neurons of the hidden layer (GELU).
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def attend(self, x_BSD: Float[Tensor, "B S D"], attend: Attend) -> Float[Tensor, "B S D"]:
        """The residual stream after attention; `attend` makes of queries, keys and values [B H S d] what heads read."""
        parts = self.queries_keys_values(self.attention_norm(x_BSD)).unflatten(-1, (3, self.heads, -1))
        read_BHSd = attend(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        return x_BSD + self.attention_out(read_BHSd.transpose(1, 2).flatten(2))

    def neurons(self, x_BSD: Float[Tensor, "B S D"]) -> Float[Tensor, "B S M"]:
        """The hidden layer of the MLP."""
        return functional.gelu(self.mlp_in(self.mlp_norm(x_BSD)))


def read(
    queries: Float[Tensor, "B H Q d"],
    keys: Float[Tensor, "B H S d"],
    values: Float[Tensor, "B H S d"],
    mask: Bool[Tensor, "*B Q S"] | None,
) -> Float[Tensor, "B H Q d"]:
    """Attention, causal where no mask is given.

    On a CPU in float32, whatever the other layers compute in: the backward pass of the bfloat16 kernel takes three
    times as long (77 against 30 ms for 64 windows of 90 tokens, 4 heads of 32, on one core).
    """
    if queries.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            found = functional.scaled_dot_product_attention(
                queries.float(), keys.float(), values.float(), attn_mask=mask, is_causal=mask is None
            )
        return found.to(queries.dtype)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)


def read_patterned(
    queries: Float[Tensor, "B H Q d"],
    keys: Float[Tensor, "B H S d"],
    values: Float[Tensor, "B H S d"],
    mask: Bool[Tensor, "*B Q S"],
    steps: int,
    name: str,
    passes: TapPass,
) -> Float[Tensor, "B H Q d"]:
    """Attention whose pattern is computed, to be recorded or edited: each step's [H K S] is one row of the tap."""
    scores = (queries @ keys.transpose(-1, -2)).float() / queries.shape[-1] ** 0.5
    pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    rows = pattern.unflatten(2, (steps, -1)).transpose(1, 2).flatten(0, 1)  # [B * T, H, K, S]
    tapped = passes(name, rows)
    pattern = tapped.unflatten(0, (-1, steps)).transpose(1, 2).flatten(2, 3)
    return pattern.to(values.dtype) @ values


def causal_mask(steps: int, tokens: int, context: int, device: torch.device) -> Bool[Tensor, "S S"]:
    """What each of `steps` x `tokens` tokens may look at: what came before, of the last `context` steps."""
    place = torch.arange(steps * tokens, device=device)
    step = place // tokens
    return (place[:, None] >= place) & (step[:, None] - step < context)


class StepMemory:
    """Keys and values of the last `context` steps of each slot, in a ring: a new step takes the place of the oldest.

    Attention does not care for the order of keys (time is in the embeddings), so nothing is ever moved.

    Slots are given in ascending order.

    Args:
        depth, slots, heads, context, tokens, head_width: sizes; `tokens` a step.
    """

    def __init__(
        self, depth: int, slots: int, heads: int, context: int, tokens: int, head_width: int, device: torch.device
    ) -> None:
        shape = (depth, slots, heads, context, tokens, head_width)
        self.keys, self.values = (torch.zeros(shape, device=device) for _ in range(2))
        self.steps = torch.zeros(slots, dtype=torch.int64, device=device)  # of the episode, before the current one
        self._slots = slots
        self.context, self.tokens = context, tokens

    def begin(self, slots: Int64[Tensor, " n"]) -> None:
        """Forget these slots' episodes."""
        self.steps[slots] = 0

    def mask(self, slots: Int64[Tensor, " n"]) -> Bool[Tensor, "n 1 K S"]:
        """Which places of the ring the current step's tokens may look at."""
        steps = self.steps[slots, None, None]
        place = torch.arange(self.context, device=slots.device)
        token = torch.arange(self.tokens, device=slots.device)
        current = place == steps % self.context
        known = (place <= steps) | (steps >= self.context)
        mine = token[:, None] >= token
        mask = (known & ~current)[..., None] | (current[..., None] & mine[:, None])  # [n K C K]
        return mask.flatten(2).unsqueeze(1)

    def order(self, slots: Int64[Tensor, " n"]) -> Int64[Tensor, "n S"]:
        """Places of the ring from the oldest step to the newest; those not used yet come last."""
        steps = self.steps[slots, None]
        start = (steps + 1).clamp_min(self.context) % self.context
        place = (start + torch.arange(self.context, device=slots.device)) % self.context
        return (place[..., None] * self.tokens + torch.arange(self.tokens, device=slots.device)).flatten(1)

    def put(
        self,
        layer: int,
        slots: Int64[Tensor, " n"],
        keys: Float[Tensor, "n H K d"],
        values: Float[Tensor, "n H K d"],
    ) -> tuple[Float[Tensor, "n H S d"], Float[Tensor, "n H S d"]]:
        """Remember the current step; all that is remembered of these slots, in the order of the ring."""
        place = self.steps[slots] % self.context
        found = []
        for ring, new in ((self.keys[layer], keys), (self.values[layer], values)):
            ring[slots, :, place] = new.to(ring.dtype)
            mine = ring if len(slots) == self._slots else ring[slots]
            found.append(mine.flatten(2, 3).to(new.dtype))
        return found[0], found[1]

    def advance(self, slots: Int64[Tensor, " n"]) -> None:
        """The current step is over."""
        self.steps[slots] += 1


def in_order(ring: Float[Tensor, "n H S d"], order: Int[Tensor, "n S"]) -> Float[Tensor, "n H S d"]:
    """Keys or values from the oldest step to the newest."""
    return ring.gather(2, order[:, None, :, None].expand_as(ring))
