"""The networks, in pure torch: agents with taps and edits, sparse autoencoders, and their weights on disk."""

from networks.bilinear_impala import BilinearConv2d, BilinearImpala, BilinearLinear
from networks.custom_cnn import CustomCNN
from networks.firing_counter import FiringCounter
from networks.policy import Policy, log_probabilities, sample_actions
from networks.precision import Precision, autocast
from networks.residual_impala import ResidualImpala
from networks.sae_base import SAEBase
from networks.sparse_autoencoder import SparseAutoencoder
from networks.taps import AgentOutput, Edit, TappedAgent
from networks.weights import hash_tensors, load_agent, load_sae, read_weights, save_weights

__all__ = [
    "AgentOutput",
    "BilinearConv2d",
    "BilinearImpala",
    "BilinearLinear",
    "CustomCNN",
    "Edit",
    "FiringCounter",
    "Policy",
    "Precision",
    "ResidualImpala",
    "SAEBase",
    "SparseAutoencoder",
    "TappedAgent",
    "autocast",
    "hash_tensors",
    "load_agent",
    "load_sae",
    "log_probabilities",
    "read_weights",
    "sample_actions",
    "save_weights",
]
