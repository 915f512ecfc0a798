"""nanopatch: GPT-2 in plain NumPy, for seeing how activation patching works."""

from . import experiments
from .circuits.acdc import acdc
from .circuits.curves import circuit_curves, complement, without_each
from .circuits.interchange import read_circuit, save_circuit
from .circuits.run import faithfulness
from .circuits.verify import verify_edges
from .errors import NanopatchError
from .experiments import metrics, tasks
from .experiments.corruption import Mean, Noise, Resample, Zero
from .experiments.experiment import Experiment
from .experiments.metrics import Metric
from .experiments.pairs import read_pairs
from .experiments.patch import Patch, Paths
from .explore.file import Page, make_page
from .gradients.attribution import attribute
from .gradients.edges import circuit, edge_attribution
from .gradients.saliency import saliency
from .lenses.attention import attention
from .lenses.direct import direct_logit_attribution
from .lenses.heads import composition_scores, copying_scores, head_scores
from .lenses.logit import logit_lens
from .model.backward import named_weights, weight_gradients
from .model.checkpoint import load
from .model.convert import save_checkpoint
from .model.generation import generate, generate_steps
from .model.gpt2 import Config, Model
from .model.sites import Run, Site, record
from .patching.folder import merge
from .patching.many import Share
from .patching.sweep import ablate, path_patch, sweep, trace
from .results.attention import Attention
from .results.comparison import Comparison
from .results.curves import CircuitCurves, VerifiedEdges
from .results.direct import DirectAttribution
from .results.edges import EdgeScores
from .results.heads import HeadScores, WeightScores
from .results.lens import LogitLens
from .results.pairs import Pairs
from .results.panels import Panels
from .results.saliency import Saliency
from .results.sweep import Sweep

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "Attention", "CircuitCurves", "Comparison", "Config", "DirectAttribution", "EdgeScores", "Experiment",
    "HeadScores", "LogitLens", "Mean", "Metric", "Model", "NanopatchError", "Noise", "Page", "Pairs", "Panels",
    "Patch", "Paths", "Resample", "Run", "Saliency", "Share", "Site", "Sweep", "VerifiedEdges", "WeightScores",
    "Zero", "ablate", "acdc", "attention", "attribute", "circuit", "circuit_curves", "complement",
    "composition_scores", "copying_scores", "direct_logit_attribution", "edge_attribution", "experiments",
    "faithfulness", "generate", "generate_steps", "head_scores", "load", "logit_lens", "make_page", "merge",
    "metrics", "named_weights", "path_patch", "read_circuit", "read_pairs", "record", "saliency", "save_checkpoint",
    "save_circuit", "sweep", "tasks", "trace", "verify_edges", "weight_gradients", "without_each",
]
# fmt: on


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
