"""Methods on a network: play, splice, visualise, track, edit, and the statistics to report them with."""

from interpretability.colour import ColourMoments as ColourMoments
from interpretability.colour import ColourStatistics as ColourStatistics
from interpretability.dataset_examples import DatasetExamples as DatasetExamples
from interpretability.dataset_examples import Example as Example
from interpretability.episodes import Episodes as Episodes
from interpretability.episodes import PlayedStep as PlayedStep
from interpretability.episodes import first_states as first_states
from interpretability.episodes import play_episodes as play_episodes
from interpretability.feature_sheet import FeatureSheet as FeatureSheet
from interpretability.feature_sheet import draw_feature_sheet as draw_feature_sheet
from interpretability.optimised_images import OptimisationSettings as OptimisationSettings
from interpretability.optimised_images import OptimisedImages as OptimisedImages
from interpretability.optimised_images import Unit as Unit
from interpretability.optimised_images import optimise_images as optimise_images
from interpretability.receptive_fields import ReceptiveField as ReceptiveField
from interpretability.receptive_fields import receptive_field as receptive_field
from interpretability.splice import MeanAblation as MeanAblation
from interpretability.splice import SpliceResult as SpliceResult
from interpretability.splice import ZeroAblation as ZeroAblation
from interpretability.splice import evaluate_splice as evaluate_splice
from interpretability.statistics import Interval as Interval
from interpretability.statistics import bootstrap_interval as bootstrap_interval
from interpretability.statistics import paired_bootstrap as paired_bootstrap
from interpretability.statistics import wilson_interval as wilson_interval
