"""The networks, in pure torch: agents with taps and edits, sparse autoencoders, and their weights on disk."""

from networks.batch_topk_sae import BatchTopKSAE
from networks.bilinear_impala import BilinearConv2d, BilinearImpala, BilinearLinear
from networks.channel_edit import ChannelEdit, load_edit
from networks.custom_cnn import CustomCNN
from networks.decision_player import DecisionPlayer
from networks.decision_transformer import DecisionTransformer
from networks.firing_counter import FiringCounter, ProgressNow
from networks.gated_sae import GatedSAE
from networks.jumprelu_sae import JumpReLUSAE
from networks.linear_readout import Direction, LinearReadout
from networks.matryoshka_sae import MatryoshkaSAE
from networks.policy import Policy, log_probabilities, sample_actions
from networks.precision import DEFAULT_PRECISION, Precision, autocast
from networks.residual_impala import ResidualImpala
from networks.sae_base import AnyProgress, Progress, RowTerms, SAEBase
from networks.sae_lens_format import load_sae_lens, save_sae_lens
from networks.sparse_autoencoder import SparseAutoencoder
from networks.taps import AgentOutput, Edit, Player, TappedAgent, TappedNetwork
from networks.topk_sae import TopKSAE
from networks.trajectory_window import GAMMA, MAX_RETURN, TrajectoryWindow, next_return
from networks.weights import (
    hash_tensors,
    load_agent,
    load_network,
    load_readout,
    load_sae,
    read_weights,
    save_weights,
    share_encoder,
)

__all__ = [
    "DEFAULT_PRECISION",
    "GAMMA",
    "MAX_RETURN",
    "AgentOutput",
    "AnyProgress",
    "BatchTopKSAE",
    "BilinearConv2d",
    "BilinearImpala",
    "BilinearLinear",
    "ChannelEdit",
    "CustomCNN",
    "DecisionPlayer",
    "DecisionTransformer",
    "Direction",
    "Edit",
    "FiringCounter",
    "GatedSAE",
    "JumpReLUSAE",
    "LinearReadout",
    "MatryoshkaSAE",
    "Player",
    "Policy",
    "Precision",
    "Progress",
    "ProgressNow",
    "ResidualImpala",
    "RowTerms",
    "SAEBase",
    "SparseAutoencoder",
    "TappedAgent",
    "TappedNetwork",
    "TopKSAE",
    "TrajectoryWindow",
    "autocast",
    "hash_tensors",
    "load_agent",
    "load_edit",
    "load_network",
    "load_readout",
    "load_sae",
    "load_sae_lens",
    "log_probabilities",
    "next_return",
    "read_weights",
    "sample_actions",
    "save_sae_lens",
    "save_weights",
    "share_encoder",
]
