"""DeepSpeed's MoE layer, timed in an environment of its own. Stands alone: nothing of this library is imported.

    python deepspeed_worker.py     reads one JSON object a line, answers with one

`{"case": "layer", "width", "inner", "experts", "k", "tokens", "dtype", "train", "copies"}` builds layers,
`{"case": "step", "text_config", "moe_layers", "experts", "k", "rows", "length", "dtype"}` a decoder and its optimizer;
`{"case": "run"}` runs what was built once and gives its seconds, `{"case": "memory"}` runs it twice and gives the most
bytes held since before it was built, `{"case": "end"}` ends.

The layer is called as MoE-LLaVA calls it: capacity 1.5 in training and 2.0 otherwise, no minimum, tokens dropped.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """A gated feed-forward network, as decoders have it."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_states):
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class Sparse(nn.Module):
    """DeepSpeed's layer in the place of a decoder's feed-forward network."""

    def __init__(self, width, expert, experts, k):
        super().__init__()
        from deepspeed.moe.layer import MoE

        capacities = {"capacity_factor": 1.5, "eval_capacity_factor": 2.0, "min_capacity": 0}
        self.moe = MoE(width, expert, num_experts=experts, ep_size=1, k=k, **capacities)
        self.moe.set_deepspeed_parallelism()
        self.balance = None

    def forward(self, hidden_states):
        output, self.balance, _ = self.moe(hidden_states)
        return output


def layer(job):
    """Layers that run one after the other on the same random tokens."""
    dtype, width = getattr(torch, job["dtype"]), job["width"]
    expert = (width, job["inner"])
    models = [Sparse(width, FeedForward(*expert), job["experts"], job["k"]).to(dtype) for _ in range(job["copies"])]
    tokens = torch.randn(1, job["tokens"], width).to(dtype).requires_grad_(job["train"])
    grad = torch.randn(1, job["tokens"], width).to(dtype)
    for model in models:
        model.train(job["train"])

    def forward():
        with torch.inference_mode():
            for model in models:
                model(tokens)

    def both():
        for model in models:
            model(tokens).backward(grad)
            for parameter in [*model.parameters(), tokens]:
                parameter.grad = None

    return both if job["train"] else forward


def step(job):
    """A decoder whose sparse layers are DeepSpeed's, and one step of stage III: feed-forward networks train."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, job["dtype"])
    config = AutoConfig.for_model(**job["text_config"])
    model = AutoModelForCausalLM.from_config(config).to(dtype).train().requires_grad_(False)
    layers = model.model.layers
    for index in job["moe_layers"]:
        layers[index].mlp = Sparse(config.hidden_size, layers[index].mlp, job["experts"], job["k"]).to(dtype)
    for one in layers:
        one.mlp.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    embedded = torch.randn(job["rows"], job["length"], config.hidden_size).to(dtype).requires_grad_()
    labels = torch.randint(config.vocab_size, (job["rows"], job["length"]))

    def run():
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        loss = loss + 0.01 * sum(layers[index].mlp.balance for index in job["moe_layers"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        embedded.grad = None

    return run


def held(name):
    """Bytes of this process: `VmRSS` now, `VmHWM` at most; on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def answer(job, state):
    """Carry out one line."""
    if job["case"] == "run":
        start = time.perf_counter()
        state["run"]()
        return {"seconds": time.perf_counter() - start}
    if job["case"] == "memory":
        state["run"]()
        state["run"]()
        return {"bytes": held("VmHWM") - state["before"]}
    state.pop("run", None)
    state["before"] = held("VmRSS")
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    state["run"] = {"layer": layer, "step": step}[job["case"]](job)
    return {"ready": True}


def free_port():
    """A port that nobody has: several of these processes live side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def main():
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what DeepSpeed says goes elsewhere
    import deepspeed

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    deepspeed.init_distributed("gloo", verbose=False)
    print(json.dumps({"deepspeed": deepspeed.__version__, "torch": torch.__version__}), file=channel, flush=True)
    state: dict = {}
    for line in sys.stdin:
        job = json.loads(line)
        if job["case"] == "end":
            break
        print(json.dumps(answer(job, state)), file=channel, flush=True)


if __name__ == "__main__":
    main()
