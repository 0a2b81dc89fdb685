"""Training networks with batch norm, with the variants of the family: ResNet-18 on CIFAR-10 and
smaller ones.
"""

from sdesam.networks.resnet import ResNet
from sdesam.networks.throughput import steps_in_turn
from sdesam.networks.trainer import Recipe, Run, State, Trainer, measure

__all__ = ["Recipe", "ResNet", "Run", "State", "Trainer", "measure", "steps_in_turn"]
