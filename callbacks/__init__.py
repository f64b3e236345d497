"""What watches something being optimised."""

from callbacks.agent_export import AgentExport as AgentExport
from callbacks.run_summary import RunSummary as RunSummary
from callbacks.throughput import Throughput as Throughput
