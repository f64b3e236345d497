"""What is optimised: one Lightning module a task, its losses as pure functions beside it."""

from lightning_modules.behaviour_cloning import BehaviourCloning as BehaviourCloning
from lightning_modules.conv_sae import ConvSAE as ConvSAE
from lightning_modules.decision_transformer import DecisionTransformer as DecisionTransformer
from lightning_modules.linear_probe import LinearProbe as LinearProbe
from lightning_modules.ppo_impala import PPOImpala as PPOImpala
from lightning_modules.sae_sweep import SAESweep as SAESweep
from lightning_modules.sweep_member import SweepMember as SweepMember
