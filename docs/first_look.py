# %% [markdown]
# # A first look inside the agent
#
# Open this file as a notebook (VS Code, Jupyter with jupytext) and run it cell by cell, or run it whole:
# `python docs/first_look.py`. It looks at the shipped autoencoder of `conv4a`. To look at one of your own, of any map,
# set `SAE` below to its file, for example `runs/sae_conv4/version_0/sae.safetensors`, which
# `python train.py --config configs/sae_conv4.yaml` writes.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, label_states, move_entity
from interpretability import ZeroAblation
from networks import DEFAULT_PRECISION, autocast, load_agent, load_sae

AGENT = globals().get("AGENT", "pretrained/heist_easy_customcnn_seed0.safetensors")
SHIPPED = "pretrained/heist_easy_customcnn_seed0_sae_conv4a.safetensors"
SAE = globals().get("SAE", SHIPPED)

agent = load_agent(AGENT)
sae = load_sae(SAE, agent)
print(f"taps: {', '.join(agent.taps)}")

# %% [markdown]
# ## One level, as the agent sees it
# Any level can be put into any slot. Test levels begin at 50 000: the agent and the autoencoder never saw one.

# %%
env = VectorEnvironment(EnvironmentSettings(), num_environments=2)
level = 50_007
env.play_levels([level, level])
_, frames, _ = env.observe()
labels = label_states(env.get_states())
print(f"level {level}: the next thing to fetch is the {ENTITIES[labels.target[0]]}, {labels.path_length[0]} moves away")

# %% [markdown]
# ## The same level with its gem moved
# A state is bytes that can be parsed, edited and put back; the game renders it anew.

# %%
state = State.from_bytes(env.get_states([0])[0])
free = [(x, y) for y in range(9) for x in range(9) if state.grid[y, x] == 100]
taken = {tuple(cell) for cell in labels.cells[0].tolist()}
elsewhere = next(cell for cell in reversed(free) if cell not in taken)
env.set_states([move_entity(state, "gem", elsewhere).to_bytes()], slots=[1])
_, frames, _ = env.observe()

# %% [markdown]
# ## Which latents notice?
# One pass records the tap; the autoencoder turns it into latents.

# %%
with torch.no_grad(), autocast(DEFAULT_PRECISION):
    output = agent(torch.from_numpy(frames.copy()), record=[sae.tap])
    latents = sae.encode(output.activations[sae.tap])
change = (latents[1] - latents[0]).abs().sum((1, 2))
top = change.topk(4).indices.tolist()
print(f"the latents that change most: {top}")

# %%
figure, axes = plt.subplots(2, 5, figsize=(11, 4.8))
for row, title in enumerate(("as it was", "gem moved")):
    axes[row, 0].imshow(frames[row])
    axes[row, 0].set_title(title)
    for axis, latent in zip(axes[row, 1:], top, strict=True):
        axis.imshow(latents[row, latent], cmap="magma", vmin=0, vmax=max(1e-6, float(latents[:, latent].max())))
        axis.set_title(f"latent {latent}")
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()
folder = Path("runs") if SAE == SHIPPED else Path(SAE).parent  # the picture of one's own lies beside it
folder.mkdir(exist_ok=True)
figure.savefig(folder / "first_look.png", dpi=120)
print(f"picture: {folder / 'first_look.png'}")

# %% [markdown]
# ## What does the policy lose?
# An edit is a module put in at a tap: the autoencoder itself (a splice), or nothing at all (an ablation).

# %%
names = ("as it is", "through the autoencoder", f"{sae.tap} set to zero")
with torch.no_grad(), autocast(DEFAULT_PRECISION):
    for name, edits in zip(names, ([], [(sae.tap, sae)], [(sae.tap, ZeroAblation())]), strict=True):
        probabilities = agent(torch.from_numpy(frames[:1].copy()), edits=edits).logits.softmax(-1)[0]
        best = int(probabilities.argmax())
        print(f"{name}: action {best} with probability {probabilities[best]:.2f}")
env.close()
