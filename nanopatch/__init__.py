"""nanopatch: GPT-2 in plain NumPy, for seeing how activation patching works."""

from . import experiments
from .errors import NanopatchError
from .experiments import tasks
from .experiments.experiment import Experiment
from .experiments.pairs import read_pairs
from .gradients.attribution import attribute
from .gradients.circuits import EdgeScores, circuit, edge_attribution, faithfulness
from .gradients.salience import saliency
from .model.checkpoint import load
from .model.generation import generate
from .model.gpt2 import Config, Model
from .model.sites import Run, Site, record
from .patching.ablation import ablate, trace
from .patching.paths import path_patch
from .patching.sweep import sweep
from .results.sweep import Panels, Sweep

__version__ = "0.1.0"
