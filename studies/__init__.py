"""One file per question asked of an agent: scenario in, numbers and pictures out."""

from studies.ablations import Ablations as Ablations
from studies.asked_returns import AskedReturns as AskedReturns
from studies.atlas import Atlas as Atlas
from studies.directional_units import DirectionalUnits as DirectionalUnits
from studies.entity_tracking import EntityTracking as EntityTracking
from studies.entity_units import EntityUnits as EntityUnits
from studies.evaluate_agent import EvaluateAgent as EvaluateAgent
from studies.evaluate_sae import EvaluateSAE as EvaluateSAE
from studies.feature_groups import FeatureGroups as FeatureGroups
from studies.feature_images import FeatureImages as FeatureImages
from studies.label_correlations import LabelCorrelations as LabelCorrelations
from studies.learning_curve import LearningCurve as LearningCurve
from studies.patching import Patching as Patching
from studies.probe_atlas import ProbeAtlas as ProbeAtlas
from studies.replacement import Replacement as Replacement
from studies.report import Report as Report
from studies.report import Study as Study
from studies.report import Table as Table
from studies.retargeting import Retargeting as Retargeting
from studies.sae_baselines import SAEBaselines as SAEBaselines
from studies.scenarios import Scenarios as Scenarios
from studies.spatial_intervention import SpatialIntervention as SpatialIntervention
from studies.steering import Steering as Steering
from studies.study_list import StudyList as StudyList
from studies.vector_fields import VectorFields as VectorFields
from studies.watch import Watch as Watch
