"""Slow, obvious twins of the package's fast code, in float64: the oracles of the tests."""

import math

import numpy as np
import torch


def group_mask(view_groups: list[int], num_targets: int, tokens: int, kind: str) -> torch.Tensor:
    """Dense mask `[T, T]`: may the row token see the column token?"""
    num_views = len(view_groups)
    allowed = torch.zeros(num_views, num_views, dtype=torch.bool)
    for i in range(num_views):
        for j in range(num_views):
            i_is_target, j_is_target = i >= num_views - num_targets, j >= num_views - num_targets
            if kind == "view":
                allowed[i, j] = i == j
            elif i_is_target:
                allowed[i, j] = not j_is_target or view_groups[i] == view_groups[j]
            else:
                allowed[i, j] = not j_is_target and view_groups[j] <= view_groups[i]
    return allowed.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def lift(intrinsics: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = intrinsics
    matrix[0, 2] -= 0.5
    matrix[1, 2] -= 0.5
    return matrix


def token_matrices(config, pose, intrinsics, time, row, column, rows, columns):
    """D x D matrices of one token: what multiplies its query, its key and value, and its output."""
    camera_dim = config.attention_head_dim - sum(config.rope_axes_dim)
    if pose is None:
        projection = torch.eye(4, dtype=torch.float64)
    elif config.camera_encoding == "gta":
        projection = torch.linalg.inv(pose)
    else:
        projection = lift(intrinsics) @ torch.linalg.inv(pose)
    grid = config.sample_size / config.patch_size
    places = [(column + 0.5) / columns * grid, (row + 0.5) / rows * grid, time * config.rope_time_scale]
    angles = []
    for place, dim in zip(places, config.rope_axes_dim):
        angles += [place * config.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
    half = len(angles)
    rotation = torch.zeros(2 * half, 2 * half, dtype=torch.float64)
    for i, angle in enumerate(angles):
        rotation[i, i] = rotation[half + i, half + i] = math.cos(angle)
        rotation[i, half + i], rotation[half + i, i] = -math.sin(angle), math.sin(angle)
    blocks = camera_dim // 4
    query = torch.block_diag(*[projection.T] * blocks, rotation)
    key = torch.block_diag(*[torch.linalg.inv(projection)] * blocks, rotation)
    output = torch.block_diag(*[projection] * blocks, rotation.T)
    return query, key, output


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def transformer(model, hidden_states, timestep, poses, intrinsics, times, view_groups, num_targets) -> torch.Tensor:
    """`KaleidoTransformer3DModel.forward` without a cache, one token, head and matrix at a time."""
    config = model.config
    batch, views, channels, height, width = hidden_states.shape
    patch, eps, dim_head = config.patch_size, config.norm_eps, config.attention_head_dim
    rows, columns = height // patch, width // patch
    tokens = rows * columns
    samples = []
    embeddings, modulations = model.time_embed(timestep)
    for b in range(batch):
        x, matrices = [], []
        for v in range(views):
            for row in range(rows):
                for column in range(columns):
                    down, right = slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)
                    piece = hidden_states[b, v, :, down, right]
                    x.append(model.patch_embed(piece.reshape(-1)))
                    pose = None if poses is None else poses[b, v]
                    lens = None if intrinsics is None else intrinsics[b, v]
                    time = 0.0 if times is None else times[b, v].item()
                    matrices.append(token_matrices(config, pose, lens, time, row, column, rows, columns))
        x = torch.stack(x)
        to_query, to_key, to_output = (torch.stack(m) for m in zip(*matrices))
        view_of = torch.arange(views).repeat_interleave(tokens)
        for block in model.transformer_blocks:
            mask = group_mask(view_groups, num_targets, tokens, block.attn.kind)
            modulation = (modulations[b] + block.scale_shift_table)[view_of]  # [T, 6, C]
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(1)
            h = rms_norm(x, eps) * block.norm1.weight * (1 + scale_a) + shift_a
            heads = []
            for head in range(config.num_attention_heads):
                kv = head // (config.num_attention_heads // config.num_key_value_heads)
                own, shared = slice(head * dim_head, (head + 1) * dim_head), slice(kv * dim_head, (kv + 1) * dim_head)
                q = rms_norm(h @ block.attn.to_q.weight[own].T, eps) * block.attn.norm_q.weight
                k = rms_norm(h @ block.attn.to_k.weight[shared].T, eps) * block.attn.norm_k.weight
                v = h @ block.attn.to_v.weight[shared].T
                q = torch.einsum("tij,tj->ti", to_query, q)
                k, v = torch.einsum("tij,tj->ti", to_key, k), torch.einsum("tij,tj->ti", to_key, v)
                scores = (q @ k.T / math.sqrt(dim_head)).masked_fill(~mask, -math.inf)
                heads.append(torch.einsum("tij,tj->ti", to_output, scores.softmax(-1) @ v))
            h = torch.cat(heads, dim=-1) @ block.attn.to_out[0].weight.T
            x = x + gate_a * rms_norm(h, eps) * block.norm2.weight
            h = rms_norm(x, eps) * block.norm3.weight * (1 + scale_f) + shift_f
            gate, up = h @ block.ff.gate_proj.weight.T, h @ block.ff.up_proj.weight.T
            h = (gate * torch.sigmoid(gate) * up) @ block.ff.down_proj.weight.T
            x = x + gate_f * rms_norm(h, eps) * block.norm4.weight
        shift, scale = (embeddings[b].unsqueeze(1) + model.scale_shift_table)[view_of].unbind(1)
        x = model.proj_out(rms_norm(x, eps) * model.norm_out.weight * (1 + scale) + shift)
        picture = torch.zeros(views, model.out_channels, height, width, dtype=x.dtype)
        for index, token in enumerate(x):
            v, row, column = index // tokens, index % tokens // columns, index % columns
            piece = token.reshape(model.out_channels, patch, patch)
            picture[v, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = piece
        samples.append(picture[views - num_targets :])
    return torch.stack(samples)


def integrate(velocity, x: torch.Tensor, sigmas: list[float], solver: str) -> torch.Tensor:
    """Euler's or Heun's method from the first to the last sigma, whose last step is Euler's, or the multistep one: the
    flow to a clean view that moves on a straight line through the last two, its integral taken by quadrature."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(30))
    before = None
    for sigma, following in zip(sigmas, sigmas[1:]):
        slope = velocity(x, sigma)
        moved = x + (following - sigma) * slope
        if solver == "multistep":
            clean = x - sigma * slope
            if before is not None and following > 0:
                moved = x * following / sigma
                for node, weight in zip(nodes, weights):
                    at = (following + sigma) / 2 + node * (sigma - following) / 2
                    there = clean + (clean - before[0]) * (at - sigma) / (sigma - before[1])
                    moved = moved + following * weight * (sigma - following) / 2 * there / at**2
            before = (clean, sigma)
        if solver == "heun" and following > 0:
            moved = x + (following - sigma) * (slope + velocity(moved, following)) / 2
        x = moved
    return x


def inside(name: str, size: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Is a point `[n, 3]` of the object's frame inside the solid? Straight from the definition of each shape."""
    x, y, z = (p / (size[0] if name in ("torus", "cone", "blend") else size)).unbind(-1)
    flat = torch.sqrt(x * x + y * y)
    if name == "box":
        return (x.abs() < 1) & (y.abs() < 1) & (z.abs() < 1)
    if name == "prism":
        apothem = math.cos(math.pi / 6)
        result = z.abs() < 1
        for side in range(6):
            result &= x * math.cos(side * math.pi / 3) + y * math.sin(side * math.pi / 3) < apothem
        return result
    if name == "pyramid":
        return (z > -1) & (torch.maximum(x.abs(), y.abs()) < (1 - z) / 2)
    if name == "octahedron":
        return x.abs() + y.abs() + z.abs() < 1
    if name == "ellipsoid":
        return x * x + y * y + z * z < 1
    if name == "cylinder":
        return (flat < 1) & (z.abs() < 1)
    if name == "cone":
        return (z > -1) & (flat < (1 - z) / 2)
    if name == "torus":
        return (flat - 0.9) ** 2 + z * z < 0.4**2
    total = None
    for place, radius in (((0, 0, -0.45), 0.6), ((0.45, 0, 0.3), 0.45), ((-0.4, 0.35, 0.4), 0.4)):
        ball = torch.sqrt((x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2) - radius
        if total is None:
            total = ball
        else:
            h = torch.clamp(0.5 + 0.5 * (ball - total) / 0.25, 0, 1)
            total = ball * (1 - h) + total * h - 0.25 * h * (1 - h)
    return total < 0


def march(name: str, size: torch.Tensor, origin: torch.Tensor, direction: torch.Tensor) -> tuple[float, float]:
    """Distance to the first point of a ray inside a solid, and how long the ray stays, by small steps."""
    steps = torch.arange(0, 6, 2e-3, dtype=torch.float64)
    points = origin.double() + steps[:, None] * direction.double()
    hits = inside(name, size.double(), points)
    first = steps[hits.nonzero()[0, 0]].item() if hits.any() else math.inf
    return first, 2e-3 * hits.sum().item()
