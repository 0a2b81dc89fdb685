"""Training networks with batch norm, with every variant of the family: ResNet-18 on CIFAR-10 and smaller ones."""

from sdesam.training.budget import Plan, plan, seconds_per_epoch, throughput
from sdesam.training.resnet import ResNet
from sdesam.training.trainer import Method, Recipe, Run, State, Trainer, evaluate, gradient_noise

__all__ = [
    "Method",
    "Plan",
    "Recipe",
    "ResNet",
    "Run",
    "State",
    "Trainer",
    "evaluate",
    "gradient_noise",
    "plan",
    "seconds_per_epoch",
    "throughput",
]
