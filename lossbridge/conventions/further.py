"""Functions of further libraries, which `lossbridge.compat` does not follow: named by a diagnosis, and in the docs.

Each record has the version that was run and figures that it gave. benchmarks/measure_conventions.py installs that
version, and prints which figures have changed.
"""

from __future__ import annotations

from dataclasses import replace

from lossbridge.conventions.convention import Peer
from lossbridge.conventions.further_engines import ENGINES
from lossbridge.conventions.further_frameworks import FRAMEWORKS
from lossbridge.conventions.further_tables import OF_TABLES
from lossbridge.conventions.further_torch import OF_TORCH

# The ones that were run.
VERSIONS = {
    "tf1": "2.21.0",
    "paddle": "3.3.1",
    "mlx": "0.32.4",
    "mindspore": "2.10.0",
    "tinygrad": "0.14.0",
    "onnx": "1.31.1",
    "onnx_reference": "1.23.2",
    "chainer": "7.8.1",
    "mxnet": "1.9.1",
    "timm": "1.0.31",
    "torchvision": "0.29.1",
    "monai": "1.6.1",
    "kornia": "0.9.0",
    "smp": "0.6.0",
    "fastai": "2.8.12",
    "torchmetrics": "1.9.0",
    "ignite": "0.5.5",
    "xgboost": "3.4.1",
    "lightgbm": "4.7.0",
    "catboost": "1.2.10",
    "river": "0.26.1",
    "statsmodels": "0.15.0",
    "thinc": "9.1.1",
    "vowpalwabbit": "9.11.9",
}

FURTHER: tuple[Peer, ...] = tuple(
    replace(peer, version=VERSIONS[peer.library]) for peer in (*FRAMEWORKS, *ENGINES, *OF_TORCH, *OF_TABLES)
)
