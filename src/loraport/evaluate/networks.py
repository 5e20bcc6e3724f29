"""The networks of a family, each as it is sampled: distillation LoRAs merged in, a drift cut to a rank."""

import torch
from diffusers import WanTransformer3DModel

from loraport.evaluate.family import Family, Model
from loraport.sampling import tiny


def load_network(family: Family, model: Model) -> WanTransformer3DModel:
    """The network of a model; distillation LoRAs are merged into its parent's weights."""
    network, _ = tiny.load_model(family.source.folder if model.distill else model.folder)
    for file in model.distill:
        tiny.merge_lora(network, file)
    if model.drift_rank is not None:
        _cut_drift(network, load_network(family, family.source), model.drift_rank)
    return network


def _cut_drift(network: WanTransformer3DModel, source: WanTransformer3DModel, rank: int) -> None:
    """Leave of the drift of every matrix of the blocks what a LoRA of a rank can hold at best."""
    state = network.state_dict()
    for name, weight in source.state_dict().items():
        if name.startswith("blocks") and weight.ndim == 2:
            U, S, Vh = torch.linalg.svd((state[name] - weight).double(), full_matrices=False)
            state[name] = weight + ((U[:, :rank] * S[:rank]) @ Vh[:rank]).float()
    network.load_state_dict(state)
