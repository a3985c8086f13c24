"""The loss alone, forwards and backwards, with so many rows of logits at a time: PYTHONPATH=src python pieces.py"""

from __future__ import annotations

import statistics
import time

import torch

from hornbook.base.machine import share_the_cores
from hornbook.model import loss

share_the_cores()
for tokens, width, vocabulary in ((1024, 768, 50_257), (2048, 256, 16_384), (2048, 192, 4096), (4096, 384, 4096)):
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    times: dict[int, list[float]] = {2**21 // vocabulary: [], 512: [], 2048: [], 2**26 // vocabulary: []}
    for _ in range(3):
        for rows, seconds in times.items():
            loss.rows_at_once = lambda *_, rows=rows: rows
            began = time.perf_counter()
            loss.cross_entropy_sum(hidden, weight, targets).backward()
            seconds.append(time.perf_counter() - began)
    print(tokens, width, vocabulary, {rows: round(1000 * statistics.median(each)) for rows, each in times.items()})
