"""What a training step is fed with: rollouts, activations, demonstrations, trajectories, and the cache below them."""

from datamodules.activation_loaders import ActivationBatch as ActivationBatch
from datamodules.activations import ActivationDataModule as ActivationDataModule
from datamodules.imitation import ImitationBatch as ImitationBatch
from datamodules.imitation import ImitationDataModule as ImitationDataModule
from datamodules.oracle_critic import OracleCritic as OracleCritic
from datamodules.probe_batch import ProbeBatch as ProbeBatch
from datamodules.probes import ProbeDataModule as ProbeDataModule
from datamodules.recorder import PlaySettings as PlaySettings
from datamodules.rollouts import RolloutBatch as RolloutBatch
from datamodules.rollouts import RolloutDataModule as RolloutDataModule
from datamodules.trajectories import TrajectoryDataModule as TrajectoryDataModule
from datamodules.trajectory_features import FeatureTap as FeatureTap
from datamodules.trajectory_recorder import TrajectorySource as TrajectorySource
from datamodules.trajectory_store import TrajectoryBatch as TrajectoryBatch
