"""A decision transformer: what to do, given what was seen and done so far and the return that is still asked for."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt8
from torch import Tensor, nn

import networks
from networks.decision_player import DecisionPlayer
from networks.frame_encoder import FrameEncoder
from networks.taps import ENCODER, AgentOutput, Edit, Player, TapPass, TappedAgent, TappedNetwork
from networks.trajectory_window import MAX_RETURN, TrajectoryWindow
from networks.transformer_block import StepMemory, TransformerBlock, causal_mask, in_order, read, read_patterned
from networks.weights import load_into

Token = Literal["action", "return", "observation"]
TOKENS: tuple[Token, ...] = ("action", "return", "observation")

_LONGEST_WAVE = 10_000.0


class DecisionTransformer(TappedNetwork):
    """Predicts actions from windows of (action before, return-to-go, observation), as Chen et al. (2021, 2106.01345).

    It is their sequence return, observation, action, return, ... cut into steps before the action rather than after
    it, so that all tokens of a step are known when it is acted on; the first step's action is "none". Logits are read
    at observation tokens, the last of each step. A step is told from others by sinusoids of its place in the episode
    (through a learnt map), which goes beyond what was trained on more gently than a table. A window longer than the
    context is computed with a banded mask: each step sees the last `context` steps, itself included.

    Taps, of which each step has one activation: `resid0.TOKEN` is the residual stream before the first block,
    `residI.TOKEN` after block I; `attentionI` the pattern [heads, tokens of the step, tokens of the window], and
    `mlpI.TOKEN` the hidden neurons of block I (counted from 1); `encoder.NAME` the encoder's own; `logits`. An edit
    sees all steps of all windows as one batch [B * T ...], as an agent's edit sees frames.

    Args:
        num_actions: procgen has 15.
        width: of the residual stream.
        depth: blocks.
        heads: of each attention.
        context: steps that are seen.
        tokens: kinds of token in a step, in the order action, return, observation; an observation must be. With
            `[observation]` and a context of 1 it is behaviour cloning.
        encoder: class of the agent whose layers, up to `encoder_tap`, turn frames into features; it has its default
            sizes.
        encoder_tap: which activation of it, flattened, is a frame's features.
        frozen_encoder: whether training leaves the encoder as it is.
        asked_return: what a player asks for in the beginning, as a discounted return (0 to 10), unless told otherwise.

    Raises:
        ValueError: sizes that do not go together, an unknown encoder or tap.
    """

    rectifies: ClassVar[bool] = False

    def __init__(
        self,
        num_actions: int = 15,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        context: int = 30,
        tokens: Sequence[Token] = TOKENS,
        encoder: str = "CustomCNN",
        encoder_tap: str = "fc1",
        frozen_encoder: bool = False,
        asked_return: float = MAX_RETURN,
    ) -> None:
        super().__init__()
        self.tokens = tuple(kind for kind in TOKENS if kind in tokens)
        if "observation" not in tokens or list(self.tokens) != list(tokens):
            raise ValueError(f"tokens {list(tokens)} must be {list(TOKENS)} or fewer in this order, with observation")
        for name, value in {"width": width, "depth": depth, "heads": heads, "context": context}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        if width % heads or width % 2:
            raise ValueError(f"width {width} must be even and a multiple of heads {heads}")
        kind = getattr(networks, encoder, None)
        if not (isinstance(kind, type) and issubclass(kind, TappedAgent)):
            raise ValueError(f"networks/ has no agent {encoder!r}: choose one for encoder, such as CustomCNN")
        self.num_actions, self.width, self.depth, self.heads, self.context = num_actions, width, depth, heads, context
        self.asked_return = asked_return
        self.encoder = FrameEncoder(kind(), encoder_tap, frozen_encoder)
        self.embed_observation = nn.Sequential(
            nn.LayerNorm(self.encoder.features), nn.Linear(self.encoder.features, width)
        )
        if "return" in self.tokens:
            self.embed_return = nn.Linear(1, width)
        if "action" in self.tokens:
            self.embed_action = nn.Embedding(num_actions + 1, width)
        self.embed_time = nn.Linear(width, width, bias=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_actions)
        self._initialise()
        self.taps = self._list_taps()

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, less where blocks add to the stream (Radford et al. 2019), zero biases."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith(ENCODER):
                adds = name.endswith(("attention_out", "mlp_out"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.depth) ** 0.5 if adds else 0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if "return" in self.tokens:
            nn.init.normal_(self.embed_return.weight, std=0.2)  # one number has to be heard beside many features

    def _list_taps(self) -> dict[str, tuple[int, ...]]:
        taps = dict(self.encoder.taps)
        taps |= {f"resid0.{kind}": (self.width,) for kind in self.tokens}
        for layer in range(1, self.depth + 1):
            taps[f"attention{layer}"] = (self.heads, len(self.tokens), self.context * len(self.tokens))
            taps |= {f"mlp{layer}.{kind}": (4 * self.width,) for kind in self.tokens}
            taps |= {f"resid{layer}.{kind}": (self.width,) for kind in self.tokens}
        return taps | {"logits": (self.num_actions,)}

    def config(self) -> dict[str, Any]:
        return {
            "num_actions": self.num_actions,
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "context": self.context,
            "tokens": list(self.tokens),
            "encoder": self.encoder.agent.architecture,
            "encoder_tap": self.encoder.tap,
            "frozen_encoder": self.encoder.frozen,
            "asked_return": self.asked_return,
        }

    def take_encoder(self, agent: TappedAgent) -> None:
        """Copy an agent's weights into the encoder.

        Raises:
            ValueError: an agent of another architecture, or of other sizes.
        """
        own = self.encoder.agent
        if agent.architecture != own.architecture:
            raise ValueError(f"the encoder is a {own.architecture}, not a {agent.architecture}: set encoder to that")
        default = own.config()
        other = {name: value for name, value in agent.config().items() if value != default[name]}
        other.pop("initialise_centred", None)  # how its weights began, which are replaced
        if other:
            sizes = ", ".join(f"{name} {value}, not {default[name]}" for name, value in other.items())
            raise ValueError(
                f"encoders have default sizes, and the agent to take one from has {sizes}: take another agent"
            )
        load_into(own, agent.state_dict(), "the agent to take it from")

    def asking(self, asked_return: float) -> "DecisionTransformer":
        """The same network (its weights are shared), whose players ask for another return."""
        twin = copy.copy(self)
        twin.asked_return = asked_return
        return twin

    def player(self, slots: int, record: Sequence[str] = (), edits: Sequence[Edit] = ()) -> Player:
        """A player that asks for `asked_return`, and remembers the context of each slot."""
        return DecisionPlayer(self, slots, record, edits)

    def forward(
        self,
        window: TrajectoryWindow,
        record: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        outputs: bool = True,
        features: Shaped[Tensor, "B T F"] | None = None,
    ) -> AgentOutput:
        """Run the network on windows, in which padding stands on the right and changes nothing.

        Args:
            window: of any length; beyond the context the mask is banded.
            record: taps whose activation [B T ...] is returned, after any edit there.
            edits: (tap, module) pairs, applied in order wherever their tap is computed, on [B * T ...].
            outputs: False stops at the deepest tap of `record`, without logits.
            features: the encoder's features of the frames, computed before; the window's frames are not looked at.

        Returns:
            Logits [B T A], no values; what stands at padded steps means nothing.

        Raises:
            ValueError: an unknown tap, or one of the encoder where features are given.
        """
        self.check_taps(record)
        self.check_edits(edits)
        passes = TapPass(record, edits)
        if features is None:
            features = self.encode(window.frames, passes, record, edits)
        elif any(passes.touches(tap) for tap in self.encoder.taps):
            raise ValueError("the encoder was run before, so its taps are not there: give frames without features")
        if not outputs and passes.complete:
            return _output(None, passes, window.actions.shape)
        none = window.actions.new_full((len(window.actions), 1), self.num_actions)
        before = torch.cat([none, window.actions[:, :-1]], 1).masked_fill(~window.mask, self.num_actions)
        x_BTKD = self.embed(
            features.masked_fill(~window.mask[..., None], 0),
            before,
            window.returns_to_go.masked_fill(~window.mask, 0),
            window.timesteps,
        )
        return self.think(x_BTKD, passes, outputs)

    def encode(
        self,
        frames: UInt8[Tensor, "B T 64 64 3"],
        passes: TapPass | None = None,
        record: Sequence[str] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "B T F"]:
        """Features of frames."""
        features, found = self.encoder(frames.flatten(0, 1), record, edits)
        if passes is not None:
            passes.activations.update(found)
        return features.unflatten(0, frames.shape[:2])

    def embed(
        self,
        features: Shaped[Tensor, "B T F"],
        actions_before: Int64[Tensor, "B T"],
        returns_to_go: Float32[Tensor, "B T"],
        timesteps: Int64[Tensor, "B T"],
    ) -> Float[Tensor, "B T K D"]:
        """The tokens of each step; `num_actions` stands for no action."""
        kind = self.embed_time.weight.dtype
        tokens = [self.embed_observation(features.to(kind))]
        if "return" in self.tokens:
            tokens.insert(0, self.embed_return(returns_to_go.to(kind)[..., None] / MAX_RETURN))
        if "action" in self.tokens:
            tokens.insert(0, self.embed_action(actions_before))
        time = self.embed_time(_sinusoids(timesteps, self.width).to(kind))
        return torch.stack(tokens, 2) + time[:, :, None]

    def think(
        self,
        x_BTKD: Float[Tensor, "B T K D"],
        passes: TapPass,
        outputs: bool = True,
        memory: StepMemory | None = None,
        slots: Int64[Tensor, " B"] | None = None,
    ) -> AgentOutput:
        """From tokens to logits; with a memory, of one new step (T = 1) of each of the slots."""
        batch, steps, kinds, _ = x_BTKD.shape
        shape = (batch, steps)
        mask = order = None
        if memory is not None:
            assert slots is not None
            mask, order = memory.mask(slots), memory.order(slots)
        elif steps > self.context:
            mask = causal_mask(steps, kinds, self.context, x_BTKD.device)
        x_BTKD = self._pass("resid0", x_BTKD, passes)
        for layer, block in enumerate(self.blocks, 1):
            if not outputs and passes.complete:
                return _output(None, passes, shape)
            assert isinstance(block, TransformerBlock)
            name = f"attention{layer}"

            def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = layer, name: str = name) -> Tensor:
                if memory is not None:
                    assert slots is not None
                    keys, values = memory.put(layer - 1, slots, keys, values)
                if passes.touches(name):
                    seen = causal_mask(steps, kinds, self.context, queries.device) if mask is None else mask
                    if order is not None:
                        keys, values = in_order(keys, order), in_order(values, order)
                        seen = seen.gather(-1, order[:, None, None].expand_as(seen))
                    return read_patterned(queries, keys, values, seen, steps, name, passes)
                return read(queries, keys, values, mask)

            x_BTKD = block.attend(x_BTKD.flatten(1, 2), attend).unflatten(1, (steps, kinds))
            neurons = self._pass(f"mlp{layer}", block.neurons(x_BTKD), passes)
            x_BTKD = self._pass(f"resid{layer}", x_BTKD + block.mlp_out(neurons), passes)
        if not outputs and passes.complete:
            return _output(None, passes, shape)
        logits = self.head(self.norm(x_BTKD[:, :, -1])).float()
        logits = passes("logits", logits.flatten(0, 1)).unflatten(0, shape)
        return _output(logits, passes, shape)

    def _pass(self, name: str, acts: Float[Tensor, "B T K W"], passes: TapPass) -> Float[Tensor, "B T K W"]:
        """Pass the taps of each kind of token, if anybody is there."""
        if not any(passes.touches(f"{name}.{kind}") for kind in self.tokens):
            return acts
        parts = list(acts.unbind(2))
        for index, kind in enumerate(self.tokens):
            if passes.touches(tap := f"{name}.{kind}"):
                parts[index] = passes(tap, parts[index].flatten(0, 1)).unflatten(0, acts.shape[:2]).to(acts.dtype)
        return torch.stack(parts, 2)


def _output(logits: Tensor | None, passes: TapPass, shape: Sequence[int]) -> AgentOutput:
    """Activations [B * T ...] become [B T ...]."""
    return AgentOutput(logits, None, {tap: acts.unflatten(0, shape) for tap, acts in passes.activations.items()})


def _sinusoids(timesteps: Int64[Tensor, "B T"], width: int) -> Float32[Tensor, "B T D"]:
    """Sines and cosines of a step's place, wavelengths from 2 pi to 20 000 pi in a geometric series (1706.03762)."""
    place = torch.arange(width // 2, device=timesteps.device, dtype=torch.float32) / (width // 2)
    angles = timesteps[..., None].float() * _LONGEST_WAVE**-place
    return torch.cat([angles.sin(), angles.cos()], -1)
