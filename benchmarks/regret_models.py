"""The rankers of regret.py, as a job file names a model."""

from torch import nn

import rankers
from models import ROOT, _module


def dcn() -> nn.Module:
    return _module(ROOT / "benchmarks" / "movielens" / "ranker.py").load()


def deepfm() -> nn.Module:
    return rankers.load("MovieLens-100K: DeepFM")


def finalmlp() -> nn.Module:
    return rankers.load("MovieLens-100K: FinalMLP")
