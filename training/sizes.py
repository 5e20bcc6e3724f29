"""The sizes that a family can be trained in: the model, its clips, and how each of its parts is trained.

What differs between sizes stands here and nowhere else; a new size is one more entry in `SIZES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraport.zoo.catalogue import TINY, ClipSize


@dataclass(frozen=True)
class Plan:
    """How one part of a family is trained.

    Attributes:
        steps: of the optimiser.
        rate: the highest learning rate.
        batch: clips a step; of each variant, where the classifier is trained.
        rank: of a LoRA.
        decay: last steps, in which the rate falls; where None, the script has a share of the steps.
        start: the model that a distillation begins from.
    """

    steps: int
    rate: float
    batch: int = 32
    rank: int | None = None
    decay: int | None = None
    start: str = "source"


@dataclass(frozen=True)
class Size:
    """A size of a family.

    Attributes:
        name: what ``--size`` says.
        device: where it trains if nothing is said.
        clip: frames and pixels of its clips.
        config: of diffusers' Wan transformer.
        chunks: of 256 trajectories.
        fake_rate: learning rate of the fake score in distribution matching.
        plans: by the name of what is trained.
    """

    name: str
    device: str
    clip: ClipSize
    config: Mapping[str, Any]
    chunks: int
    fake_rate: float
    plans: Mapping[str, Plan]


_COMMON: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "in_channels": 6,  # colour, and where and when a pixel is
    "out_channels": 3,
    "text_dim": 32,
}

SIZES = {
    size.name: size
    for size in (
        Size(
            name="tiny",
            device="cpu",
            clip=TINY,
            config=_COMMON
            | {
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "freq_dim": 64,
                "ffn_dim": 512,
                "num_layers": 4,
                "rope_max_seq_len": 32,
            },
            chunks=12,
            fake_rate=4e-4,
            plans={
                "source": Plan(9000, 1.5e-3, decay=5000),
                "step": Plan(800, 1.5e-4),
                "causal-init": Plan(500, 4e-4),
                "dmd": Plan(250, 3e-4, batch=24),
                "self-forcing": Plan(300, 1e-4, batch=24, start="causal-init"),
                "distill-lora": Plan(250, 1e-3, batch=24, rank=16),
                "few-step": Plan(250, 1e-3, batch=24, rank=16),
                "guidance": Plan(500, 1e-3, rank=8),
                "noir": Plan(350, 2e-3, rank=8),
                "outline": Plan(600, 2e-3, rank=8),
                "stripe": Plan(350, 2e-3, rank=8),
                "ring": Plan(900, 2e-3, rank=16),
                "zigzag": Plan(1600, 2e-3, rank=16),
                "classifier": Plan(2500, 3e-3, batch=12),
            },
        ),
        Size(
            name="middle",
            device="auto",
            clip=ClipSize(frames=8, side=32),
            config=_COMMON
            | {
                "num_attention_heads": 8,
                "attention_head_dim": 64,
                "freq_dim": 256,
                "ffn_dim": 2048,
                "num_layers": 8,
                "rope_max_seq_len": 64,
            },
            chunks=16,
            fake_rate=1e-4,
            plans={
                "source": Plan(2800, 6e-4, batch=128, decay=1400),
                "step": Plan(400, 1e-4, batch=128),
                "causal-init": Plan(300, 2e-4, batch=128),
                "dmd": Plan(125, 3e-5, batch=64, start="step"),
                "self-forcing": Plan(125, 3e-5, batch=64, start="causal-init"),
                "distill-lora": Plan(250, 5e-4, batch=64, rank=16),
                "few-step": Plan(250, 5e-4, batch=64, rank=16),
                "guidance": Plan(300, 1e-3, batch=64, rank=16),
                "noir": Plan(300, 1e-3, batch=64, rank=16),
                "outline": Plan(300, 1e-3, batch=64, rank=16),
                "stripe": Plan(300, 1e-3, batch=64, rank=16),
                "ring": Plan(450, 1e-3, batch=64, rank=16),
                "zigzag": Plan(1200, 1e-3, batch=64, rank=16),
                "classifier": Plan(2500, 2e-3, batch=16),
            },
        ),
    )
}
