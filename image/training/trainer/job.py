"""What every trainer shares: the job's parameters, its ranks, checkpoints and progress.

A job sees three folders: /job (job.json, read-only), /data (the data set, read-only) and /work (its own). In /work stand
checkpoint.pt, progress.jsonl (one JSON object a line, by rank 0) and, in the end, result/. A file /work/suspend asks for an
end at the next checkpoint; the ranks agree on it at each step, so that none is left behind.
"""
import json
import os
import time

import torch
import torch.distributed as dist

WORK = os.environ.get("TRIBUTARY_WORK", "/work")
DATA = os.environ.get("TRIBUTARY_DATA", "/data")
JOB = os.environ.get("TRIBUTARY_JOB", "/job")


class Suspended(Exception):
    """The job is to end at the checkpoint that has just been written."""


def write(path, data):
    """Replace a file so that a cut leaves the old one or the new one."""
    tmp = path + ".new"
    with open(tmp, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


class Job:
    def __init__(self):
        with open(os.path.join(JOB, "job.json"), encoding="utf-8") as f:
            self.parameters = json.load(f)["parameters"]
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(self.number("seed", 1))
        torch.set_num_threads(1)

    def number(self, name, default):
        return type(default)(self.parameters.get(name, default))

    def say(self, **what):
        """One line of progress; only rank 0 speaks."""
        if self.rank == 0:
            what["time"] = time.time()
            with open(os.path.join(WORK, "progress.jsonl"), "a", encoding="utf-8") as f:
                f.write(json.dumps(what) + "\n")

    def restore(self):
        """The last checkpoint, or None."""
        path = os.path.join(WORK, "checkpoint.pt")
        return torch.load(path, map_location="cpu") if os.path.exists(path) else None

    def checkpoint(self, state):
        """Write a checkpoint; every rank waits until it is whole."""
        if self.rank == 0:
            path = os.path.join(WORK, "checkpoint.pt")
            torch.save(state, path + ".new")
            with open(path + ".new", "rb+") as f:
                os.fsync(f.fileno())
            os.replace(path + ".new", path)
        dist.barrier()

    def asked_to_suspend(self):
        """What rank 0 sees, told to all."""
        seen = torch.tensor([float(self.rank == 0 and os.path.exists(os.path.join(WORK, "suspend")))])
        dist.broadcast(seen, 0)
        return bool(seen.item())

    def mean(self, value):
        t = torch.tensor([float(value)])
        dist.all_reduce(t)
        return t.item() / self.ranks

    def result(self, files):
        """Put the result there whole: a folder that is renamed last."""
        if self.rank == 0:
            tmp, to = os.path.join(WORK, "result.new"), os.path.join(WORK, "result")
            os.makedirs(tmp, exist_ok=True)
            for name, data in files.items():
                write(os.path.join(tmp, name), data)
            if os.path.exists(to):
                for name in os.listdir(to):
                    os.remove(os.path.join(to, name))
                os.rmdir(to)
            os.replace(tmp, to)
        dist.barrier()


def run(train):
    """Run a trainer; an end at a checkpoint is an end without error."""
    job = Job()
    try:
        train(job)
        job.say(ended="done")
    except Suspended:
        job.say(ended="suspended")
    finally:
        dist.destroy_process_group()
