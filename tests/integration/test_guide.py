"""The code of the guide that this project grew out of, cell by cell, and a run built on it."""

# ruff: noqa: E501 -- the guide's own lines

from __future__ import annotations

import pytest

from tests.integration.kernel import Kernel

CELLS = [
    """\
import os
import socket
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset, DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
import torch.nn as nn
import torch.optim as optim
from torch.cuda.amp import autocast, GradScaler
import matplotlib.pyplot as plt
from tqdm import tqdm
import csv
from transformers import SamModel, SamProcessor
from monai.losses import DiceLoss
""",
    """\
def find_free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(('', 0))
        return s.getsockname()[1]
""",
    """\
def compute_dice_score(predicted, ground_truth):
    intersection = torch.sum(predicted * ground_truth)
    total = torch.sum(predicted) + torch.sum(ground_truth)
    dice_score = (2 * intersection + 1e-6) / (total + 1e-6)
    return dice_score

def compute_iou(predicted, ground_truth):
    intersection = torch.logical_and(predicted, ground_truth)
    union = torch.logical_or(predicted, ground_truth)
    union_sum = torch.sum(union)
    if union_sum == 0:
        return torch.tensor(0.0, device=predicted.device)
    iou_score = torch.sum(intersection).float() / union_sum.float()
    return iou_score

def compute_accuracy(predicted, ground_truth):
    if predicted.numel() == 0 or ground_truth.numel() == 0:
        return torch.tensor(0.0, device=predicted.device)
    pred_flat = predicted.view(-1).bool()
    gt_flat = ground_truth.view(-1).bool()
    correct_pixels = (pred_flat == gt_flat).sum().float()
    total_pixels = torch.tensor(pred_flat.numel(), dtype=torch.float32, device=predicted.device)
    if total_pixels == 0:
        return torch.tensor(0.0, device=predicted.device)
    return correct_pixels / total_pixels
""",
    """\
def visualize_results(images, points, ground_truths, predicted_masks, epoch, batch_idx, is_training=True):
    for idx in range(min(len(images), 5)):
        image = images[idx].cpu().numpy()
        if image.shape[0] == 3:
            image = image.transpose(1, 2, 0)
        else:
            image = image.squeeze()

        plt.figure(figsize=(18, 6))
        plt.subplot(1, 3, 1)
        plt.imshow(image)
        if points[idx].numel() > 0:
            plt.scatter(points[idx][:, 0].cpu().numpy(), points[idx][:, 1].cpu().numpy(), color='red', marker='x')
        plt.title(f"{'Training' if is_training else 'Validation'} Image with Points")
        plt.axis('off')

        plt.subplot(1, 3, 2)
        plt.imshow(ground_truths[idx].cpu().numpy().squeeze(), cmap='gray')
        plt.title('Ground Truth Mask')
        plt.axis('off')

        plt.subplot(1, 3, 3)
        plt.imshow(predicted_masks[idx].cpu().numpy().squeeze(), cmap='gray')
        plt.title('Predicted Mask')
        plt.axis('off')
        plt.show()
""",
    """\
class CustomDataset(Dataset):
    def __init__(self, images, labels, coordinates):
        self.images = images
        self.labels = labels
        self.coordinates = coordinates

    def __len__(self):
        return len(self.images)

    def __getitem__(self, idx):
        image = self.images[idx]
        label = self.labels[idx]
        coords = [(pt[2], pt[1]) for pt in self.coordinates if pt[0] == idx]
        return image, label, coords

def collate_fn(batch):
    images, labels, coords = zip(*batch)
    images = [torch.tensor(image, dtype=torch.float32) for image in images]
    labels = [torch.tensor(label, dtype=torch.float32) for label in labels]
    coords = [torch.tensor([(pt[0], pt[1]) for pt in coord], dtype=torch.float32) for coord in coords]
    return images, labels, coords
""",
    """\
def setup(rank, world_size, port):
    print(f"Rank {rank}: Initializing process group")
    os.environ['MASTER_ADDR'] = 'localhost'
    os.environ['MASTER_PORT'] = str(port)
    dist.init_process_group("nccl", rank=rank, world_size=world_size)
    print(f"Rank {rank}: Process group initialized")

def cleanup():
    dist.destroy_process_group()
""",
]

TRAIN = """
%%ddp -n 2 --pull scores
import os
port = find_free_port()
setup(rank, world_size, port)

def train(rank, epochs=2):
    rng = np.random.default_rng(0)
    images = rng.random((8, 3, 16, 16), dtype=np.float32)
    labels = (images.mean(1, keepdims=True) > 0.5).astype(np.float32)
    coordinates = [(i, 4, 6) for i in range(8)]
    dataset = CustomDataset(images, labels, coordinates)
    sampler = DistributedSampler(dataset)
    loader = DataLoader(Subset(dataset, range(8)), batch_size=2, sampler=sampler, collate_fn=collate_fn)
    model = DDP(nn.Conv2d(3, 1, 3, padding=1))
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    loss_of = DiceLoss(sigmoid=True)
    scores = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch, (x, y, coords) in enumerate(tqdm(loader)):
            prediction = model(torch.stack(x))
            loss = loss_of(prediction, torch.stack(y))
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        masks = (prediction > 0).float()
        scores.append([float(f(masks[0], y[0])) for f in (compute_dice_score, compute_iou, compute_accuracy)])
    if rank == 0:
        visualize_results(x[:1], coords, y, masks, epoch, batch)
    return scores

scores = train(rank)
cleanup()
print("trained", len(scores))
"""


@pytest.mark.slow
def test_the_guides_own_code(kernel: Kernel) -> None:
    """Its helpers in ordinary cells, then its setup, a training function and its cleanup."""
    for cell in CELLS:
        # No GPU here; the rest is as written.
        result = kernel.run(cell.replace('"nccl"', '"gloo"'))
        assert result.status == "ok", result.traceback
    result = kernel.run(TRAIN.lstrip())
    assert result.status == "ok", result.traceback
    assert result.text.count("trained 2") == 2
    assert "Rank 1: Process group initialized" in result.text
    assert any("image/png" in display["data"] for display in result.displays)
    scores = kernel.value("scores")
    assert len(scores) == 2
    assert all(0 <= score <= 1 for row in scores for score in row)
