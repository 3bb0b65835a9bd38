"""Hunyuan-Large's forward pass in plain PyTorch, from the published tensors by their names.

Written from the order of Tencent's ``modeling_hunyuan.py``, token by token and head by head where that is plainest:
shares no code with the package. Routing without capacity, as the published code runs it.
"""

import torch


def rms_norm(x, weight, epsilon=1e-5):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotate(x, theta, alpha):
    """x [T, heads, d]."""
    d = x.shape[-1]
    base = theta * alpha ** (d / (d - 2))
    out = torch.empty_like(x)
    for t in range(x.shape[0]):
        for i in range(d // 2):
            angle = torch.tensor(t * base ** (-2 * i / d), dtype=x.dtype)
            a, b = x[t, :, i], x[t, :, i + d // 2]
            out[t, :, i] = a * angle.cos() - b * angle.sin()
            out[t, :, i + d // 2] = b * angle.cos() + a * angle.sin()
    return out


def mlp(x, weights, name):
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def forward(weights, text, *, layers, heads, groups, top_k, share, theta=1e4, alpha=1.0):
    """Logits [T, V] of one text [T]; in the dtype of the weights."""
    x = weights["model.embed_tokens.weight"][text]
    length = len(text)
    for i in range(layers):
        name = f"model.layers.{i}"
        normed = rms_norm(x, weights[f"{name}.input_layernorm.weight"])
        attention = f"{name}.self_attn"
        q = (normed @ weights[f"{attention}.q_proj.weight"].T).view(length, heads, -1)
        if i % share == 0:  # raw projections, which the following layers of the group take over
            k_raw = (normed @ weights[f"{attention}.k_proj.weight"].T).view(length, groups, -1)
            v = (normed @ weights[f"{attention}.v_proj.weight"].T).view(length, groups, -1)
        q = rms_norm(rotate(q, theta, alpha), weights[f"{attention}.query_layernorm.weight"])
        k = rms_norm(rotate(k_raw, theta, alpha), weights[f"{attention}.key_layernorm.weight"])
        outs = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = q[:, head] @ k[:, group].T / q.shape[-1] ** 0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
            outs.append(scores.softmax(-1) @ v[:, group])
        x = x + torch.cat(outs, -1) @ weights[f"{attention}.o_proj.weight"].T
        normed = rms_norm(x, weights[f"{name}.post_attention_layernorm.weight"])
        added = mlp(normed, weights, f"{name}.mlp.shared_mlp")
        probabilities = (normed @ weights[f"{name}.mlp.gate.wg.weight"].T).softmax(-1)
        for t in range(length):
            p, chosen = probabilities[t].topk(top_k)
            if top_k > 1:
                p = p / p.sum()
            for weight, expert in zip(p, chosen.tolist(), strict=True):
                added[t] += weight * mlp(normed[t], weights, f"{name}.mlp.experts.{expert}")
        x = x + added
    x = rms_norm(x, weights["model.norm.weight"])
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
