"""Trains an autoencoder on KPIs of devices: what it restores badly is unusual.

Data: /data/*.csv with a heading; the columns `device` and `time` say whose and when, every other one is a KPI. Rows of
a device are cut into windows of `window` rows. The model takes windows, shape [n, window, KPIs] of float32, in the KPIs'
own units (it knows mean and deviation of each), and gives one score for each window, shape [n]: the mean square of what it
restores wrongly, in deviations.

Parameters: window 8, hidden 16, steps 200, batch 64, rate 0.003, seed 1, checkpointEvery 20.
"""
import csv
import glob
import io
import json
import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import job as jobs


class Autoencoder(nn.Module):
    def __init__(self, window, kpis, hidden, mean, deviation):
        super().__init__()
        wide = window * kpis
        self.window, self.kpis = window, kpis
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.code = nn.Sequential(nn.Linear(wide, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU())
        self.restore = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, wide))

    def forward(self, x):
        flat = ((x - self.mean) / self.deviation).reshape(-1, self.window * self.kpis)
        return ((self.restore(self.code(flat)) - flat) ** 2).mean(dim=1)


def read(window):
    """Windows of all devices, in the order of their names, and the KPIs' names."""
    rows, names = {}, None
    for path in sorted(glob.glob(os.path.join(jobs.DATA, "*.csv"))):
        with open(path, newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                device, at = row.pop("device"), row.pop("time")
                here = sorted(row)
                if names is None:
                    names = here
                elif names != here:
                    raise SystemExit(f"{path}: the columns {here} are not those of the files before, {names}")
                rows.setdefault(device, []).append((at, [float(row[n]) for n in names]))
    cut = []
    for device in sorted(rows):
        values = [v for _, v in sorted(rows[device])]
        cut += [values[i:i + window] for i in range(len(values) - window + 1)]
    if not cut:
        raise SystemExit(f"the data set has no device with {window} rows: give more data or a smaller window")
    return torch.tensor(cut, dtype=torch.float32), names


def train(job):
    window, steps = job.number("window", 8), job.number("steps", 200)
    batch, every = job.number("batch", 64), job.number("checkpointEvery", 20)
    data, names = read(window)
    held = data[::10]  # one window of ten is kept back, by which the model is judged
    learnt = data[[i for i in range(len(data)) if i % 10]] if len(data) > 10 else data
    flat = learnt.reshape(-1, len(names))
    model = Autoencoder(window, len(names), job.number("hidden", 16), flat.mean(dim=0), flat.std(dim=0, unbiased=False).clamp(min=1e-6))
    step, before = 0, job.restore()
    if before:
        model.load_state_dict(before["model"])
        step = before["step"]
    spread = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(spread.parameters(), lr=job.number("rate", 0.003))
    if before:
        optimizer.load_state_dict(before["optimizer"])
    job.say(step=step, steps=steps, windows=len(data), ranks=job.ranks, resumed=bool(before))
    while step < steps:
        # Which windows a step sees depends on the step and the rank alone: who resumes goes on as if nothing had been.
        chance = torch.Generator().manual_seed(job.number("seed", 1) * 1_000_003 + step * 131 + job.rank)
        picked = learnt[torch.randint(len(learnt), (batch,), generator=chance)]
        loss = spread(picked).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        stop = job.asked_to_suspend()
        if step % every == 0 or step == steps or stop:
            mean = job.mean(loss.item())
            job.checkpoint({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
            job.say(step=step, steps=steps, loss=mean)
            if stop and step < steps:
                raise jobs.Suspended()
    finish(job, model, held, learnt, names, window)


def finish(job, model, held, learnt, names, window):
    """The model as ONNX, with inputs and what PyTorch gives for them."""
    model.eval()
    with torch.no_grad():
        scores = model(held)
        usual = model(learnt)
        golden = held[:8]
        expected = model(golden)
    if job.rank != 0:
        job.result({})
        return
    out = io.BytesIO()
    torch.onnx.export(model, golden[:1], out, input_names=["windows"], output_names=["score"], opset_version=13,
                      dynamic_axes={"windows": {0: "n"}, "score": {0: "n"}})
    limit = torch.quantile(usual[:100_000], 0.999).item()
    job.result({
        "model.onnx": out.getvalue(),
        "golden.json": json.dumps({"inputs": [{"name": "windows", "datatype": "FP32", "shape": list(golden.shape), "data": golden.flatten().tolist()}],
                                   "outputs": [{"name": "score", "datatype": "FP32", "shape": list(expected.shape), "data": expected.tolist()}],
                                   "tolerance": 1e-4}).encode(),
        "metrics.json": json.dumps({"heldBackLoss": scores.mean().item(), "limit": limit, "kpis": names, "window": window,
                                    "windows": len(held) + len(learnt)}).encode(),
    })


if __name__ == "__main__":
    jobs.run(train)
