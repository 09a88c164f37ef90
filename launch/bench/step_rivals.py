"""The train steps of step.py in PyTorch, of timm's and transformers' models, each written from its paper: what ours are timed against.

Every rival is a function () -> None that takes a whole step, on the views and tokens of our batch, and returns when the device is done.
Absent packages make no rival.
"""

import importlib.metadata
import importlib.util

PACKAGES = ("torch", "timm", "transformers")


def make(case, raw, dtype, compiled):
    """{"torch": step, "torch.compile": step} of a case of step.py; {} where torch or the models' package is not installed.

    raw: our batch, numpy: views uint8 (B, count, S, S, 3) by group, text (B, L), label (B,)."""
    method, size = case.split("-", 1)
    package = "transformers" if method in ("mae", "siglip") else "timm"
    if not all(importlib.util.find_spec(name) for name in ("torch", package)):
        return {}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as XLA multiplies float32 on a GPU
        torch.cuda.empty_cache()
    views = {name: _pictures(value, device) for name, value in raw.items() if getattr(value, "ndim", 0) == 5}
    loss, modules, after = LOSSES[method](size, views, raw, device)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)

    def step(loss):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()
        after()
        value.item()

    rivals = {"torch": lambda: step(loss)}
    if compiled:
        fast = torch.compile(loss)
        rivals["torch.compile"] = lambda: step(fast)
    return rivals


def versions():
    """What a rival's speed depends on: "torch 2.13.0, timm 1.0.31, ...", of the packages that are installed."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if importlib.util.find_spec(name))


def _pictures(value, device):
    """uint8 (B, count, S, S, 3) -> float32 (count * B, 3, S, S), view-major, around 0."""
    import torch

    flat = torch.from_numpy(value).to(device).transpose(0, 1).flatten(0, 1)
    return flat.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def _vit(size, device, classes=0):
    import timm

    names = {"S": "vit_small_patch16_224", "B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}
    return timm.create_model(names[size], num_classes=classes, dynamic_img_size=True).to(device)


def supervised(size, views, raw, device):
    import torch

    model, label = _vit(size, device, 1000), torch.from_numpy(raw["label"]).long().to(device)
    return lambda: torch.nn.functional.cross_entropy(model(views["views"]), label), [model], lambda: None


def simclr(size, views, raw, device):
    """NT-Xent (Chen et al. 2020, Algorithm 1)."""
    import torch

    model = _vit(size, device)
    projector = torch.nn.Sequential(
        torch.nn.Linear(model.num_features, 2048, bias=False), torch.nn.BatchNorm1d(2048), torch.nn.ReLU(), torch.nn.Linear(2048, 128)
    ).to(device)  # fmt: skip
    x = views["views"]
    n = len(x)
    partner = torch.arange(n, device=device).roll(n // 2)

    def loss():
        z = torch.nn.functional.normalize(projector(model(x)), dim=-1)
        logits = (z @ z.T / 0.1).masked_fill(torch.eye(n, dtype=torch.bool, device=device), -torch.inf)
        return torch.nn.functional.cross_entropy(logits.float(), partner)

    return loss, [model, projector], lambda: None


def dino(size, views, raw, device):
    """Two global and eight local crops, teacher and centre (Caron et al. 2021, Algorithm 1)."""
    import copy

    import torch

    class Head(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            layer, gelu = torch.nn.Linear, torch.nn.GELU
            self.mlp = torch.nn.Sequential(layer(width, 2048), gelu(), layer(2048, 2048), gelu(), layer(2048, 256))
            self.last = torch.nn.Parameter(torch.randn(65536, 256) * 0.02)

        def forward(self, x):
            normalize = torch.nn.functional.normalize
            return normalize(self.mlp(x), dim=-1) @ normalize(self.last, dim=-1).T

    encoder = _vit(size, device)
    student = torch.nn.ModuleList([encoder, Head(encoder.num_features).to(device)])
    teacher = copy.deepcopy(student).requires_grad_(False)
    wide = views["views"]
    narrow = next(value for name, value in views.items() if name != "views")
    batch, centre = len(wide) // 2, torch.zeros(65536, device=device)

    def loss():
        nonlocal centre
        with torch.no_grad():
            raw_targets = teacher[1](teacher[0](wide)).float()
            targets = ((raw_targets - centre) / 0.04).softmax(-1).view(2, batch, -1)
            centre = 0.9 * centre + 0.1 * raw_targets.mean(0)
        features = torch.cat([student[0](wide), student[0](narrow)])
        log_p = (student[1](features).float() / 0.1).log_softmax(-1).view(-1, batch, 65536)
        pairs = [(g, v) for g in range(2) for v in range(len(log_p)) if g != v]
        return sum(-(targets[g] * log_p[v]).sum(-1).mean() for g, v in pairs) / len(pairs)

    @torch.no_grad()
    def after():
        mine, theirs = list(teacher.parameters()), list(student.parameters())
        torch._foreach_mul_(mine, 0.996)
        torch._foreach_add_(mine, theirs, alpha=0.004)

    return loss, [student], after


def mae(size, views, raw, device):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
    width, depth, heads = sizes[size.partition("-")[0]]
    config = ViTMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width, decoder_num_hidden_layers=8,
        decoder_hidden_size=512, decoder_num_attention_heads=16, decoder_intermediate_size=2048, norm_pix_loss=True,
        mask_ratio=0.0 if "unmasked" in size else 0.75,
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).to(device).train()
    if "unmasked" in size:  # a loss of no patch is 0 / 0
        return lambda: model(views["views"]).logits.square().mean(), [model], lambda: None
    return lambda: model(views["views"]).loss, [model], lambda: None


def siglip(size, views, raw, device):
    import torch
    from transformers import SiglipConfig, SiglipModel

    tower = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
    text = torch.from_numpy(raw["text"]).long().to(device)
    config = SiglipConfig(
        text_config=dict(tower, vocab_size=32_000, max_position_embeddings=text.shape[1]), vision_config=dict(tower, patch_size=16)
    )
    model = SiglipModel(config).to(device).train()
    return lambda: model(input_ids=text, pixel_values=views["views"], return_loss=True).loss, [model], lambda: None


LOSSES = {"supervised": supervised, "simclr": simclr, "dino": dino, "mae": mae, "siglip": siglip}
