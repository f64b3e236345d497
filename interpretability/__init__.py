"""Methods on a network: play, splice, visualise, track, edit, and the statistics to report them with."""

from interpretability.episodes import Episodes as Episodes
from interpretability.episodes import PlayedStep as PlayedStep
from interpretability.episodes import first_states as first_states
from interpretability.episodes import play_episodes as play_episodes
from interpretability.splice import MeanAblation as MeanAblation
from interpretability.splice import SpliceResult as SpliceResult
from interpretability.splice import ZeroAblation as ZeroAblation
from interpretability.splice import evaluate_splice as evaluate_splice
from interpretability.statistics import Interval as Interval
from interpretability.statistics import bootstrap_interval as bootstrap_interval
from interpretability.statistics import paired_bootstrap as paired_bootstrap
from interpretability.statistics import wilson_interval as wilson_interval
