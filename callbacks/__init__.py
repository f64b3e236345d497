"""What watches something being optimised."""

from callbacks.agent_export import AgentExport as AgentExport
from callbacks.asked_returns import AskedReturns as AskedReturns
from callbacks.dead_neurons import DeadNeurons as DeadNeurons
from callbacks.feature_visualisation import FeatureVisualisation as FeatureVisualisation
from callbacks.held_out_play import HeldOutPlay as HeldOutPlay
from callbacks.probe_export import ProbeExport as ProbeExport
from callbacks.probe_figures import ProbeFigures as ProbeFigures
from callbacks.run_summary import RunSummary as RunSummary
from callbacks.sae_export import SAEExport as SAEExport
from callbacks.sae_sweep_report import SAESweepReport as SAESweepReport
from callbacks.sae_tables import SAETables as SAETables
from callbacks.splice_evaluation import SpliceEvaluation as SpliceEvaluation
from callbacks.throughput import Throughput as Throughput
