"""What is asked: prompts and answers, tasks that make them, files that hold them, and what is measured."""

from .experiment import CAPITAL, ELON, INDIRECT_OBJECT, JESSICA, MICHELLE, NAMED, Experiment, ExperimentTokens

__all__ = ["CAPITAL", "ELON", "INDIRECT_OBJECT", "JESSICA", "MICHELLE", "NAMED", "Experiment", "ExperimentTokens"]
