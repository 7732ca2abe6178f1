"""The method once more in float64 numpy, written from the equations and sharing no code with the package."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def starts(length, patch):
    """t_k = (k-1)(H-h)/(N-1), N the smallest integer > H/h, rounded half up."""
    if length <= patch:
        return [0]
    count = 1
    while not count > Fraction(length, patch):
        count += 1
    return [int(np.floor(Fraction(k * (length - patch), count - 1) + Fraction(1, 2))) for k in range(count)]


def rotate(x, ids, axes_dim, theta, laws=None):
    """Rotate consecutive channel pairs of x (..., L, D) as complex numbers by ids (L, axes), at frequencies `laws`."""
    laws = [theta ** (-np.arange(0, d, 2) / d) for d in axes_dim] if laws is None else laws
    angles = np.concatenate([ids[:, [a]] * law for a, law in enumerate(laws)], axis=1)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = z.real, z.imag
    return out


def frequencies(d, theta):
    """Of an axis of d channels: pair j turns by theta^(-2j/d) a token."""
    return np.array([theta ** (-2 * j / d) for j in range(d // 2)])


def ntk(d, theta, s):
    return frequencies(d, theta * s ** (d / (d - 2)))


def yarn(d, theta, s, base, pace=1.0):
    """YaRN by parts: idx(r) = d ln(L0 / (2 pi r)) / (2 ln theta), ramps (16, 2) native to (1.25, .75) NTK to linear."""

    def share(begin, end):
        def index(r):
            return d / 2 if r <= 0 else d * np.log(base / (2 * np.pi * r)) / (2 * np.log(theta))

        low, high = max(np.floor(index(begin)), 0), min(np.ceil(index(end)), d - 1)
        return np.array([1 - np.clip((j - low) / max(high - low, 1e-3), 0, 1) for j in range(d // 2)])

    if s == 1:
        return frequencies(d, theta)
    some, own = share(1.25 * pace, 0.75 * pace), share(16 * pace, 2 * pace)
    parts = some * ntk(d, theta, s) + (1 - some) * frequencies(d, theta) / s
    return own * frequencies(d, theta) + (1 - own) * parts


def shift(sigma, a):
    """The noise level whose odds are a times sigma's."""
    sigma = np.asarray(sigma, dtype=np.float64)
    return sigma / (sigma + (1 - sigma) / a)


def attention(q, k, v):
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def fuse(x_g, x_l, cutoff):
    """F^-1(M F(x_g) + (1 - M) F(x_l)) over the two axes of (h, w, C), M a box of |f| <= cutoff cycles/token.

    A cutoff is a number, here and below, or one for each axis.
    """
    f_h, f_w = (
        np.abs(np.fft.fftfreq(n)) <= c + 1e-12 for n, c in zip(x_g.shape[:2], np.broadcast_to(cutoff, 2), strict=True)
    )
    mask = (f_h[:, None] & f_w[None, :])[..., None]
    both = mask * np.fft.fft2(x_g, axes=(0, 1)) + ~mask * np.fft.fft2(x_l, axes=(0, 1))
    return np.fft.ifft2(both, axes=(0, 1)).real


def splice(patches, grid, base, corners, sigma):
    """f(p) = sum_i w_i(p) f_i(p) / sum_i w_i(p), w_i(p) = exp(-|p - c_i|^2 / 2 sigma^2), |.| in patch sides."""
    total = np.zeros((*grid, patches[0].shape[-1]))
    norm = np.zeros((*grid, 1))
    for patch, (top, left) in zip(patches, corners, strict=True):
        for i in range(base[0]):
            for j in range(base[1]):
                d2 = ((i - (base[0] - 1) / 2) / base[0]) ** 2 + ((j - (base[1] - 1) / 2) / base[1]) ** 2
                weight = 1.0 if sigma is None else np.exp(-d2 / (2 * sigma**2))
                total[top + i, left + j] += weight * patch[i, j]
                norm[top + i, left + j] += weight
    return total / norm


def positions(height, width, s_h=1.0, s_w=1.0):
    return np.array([(i / s_h, j / s_w) for i in range(height) for j in range(width)])


def equidistant(length, maximal):
    """For i = 1..H the mean of the i-th smallest of H numbers drawn from 0..M-1, rounded half up."""
    means = [Fraction(i * (maximal + 1), length + 1) - 1 for i in range(1, length + 1)]
    return np.array([np.floor(mean + Fraction(1, 2)) for mean in means], dtype=np.float64)


def ids_of(text, pos, others=None, first=(0.0, 0.0, 0.0)):
    """(T + L, axes) ids: `others`, or zeros for text, then `first`, or (first, 0, 0), plus rows and columns."""
    first = np.array([first, 0, 0] if np.ndim(first) == 0 else first, dtype=np.float64)
    image = np.tile(first, (len(pos), 1))
    image[:, 1:3] += np.asarray(pos, dtype=np.float64).reshape(-1, 2)
    others = np.zeros((text, len(first))) if others is None else np.asarray(others, dtype=np.float64)
    return np.concatenate([others.reshape(-1, len(first)), image])


def block_means(x, p):
    """(H, W, C) -> means over blocks of p x p, those at the far edges smaller."""
    H, W = x.shape[:2]
    return np.array(
        [[x[i : i + p, j : j + p].reshape(-1, x.shape[2]).mean(0) for j in range(0, W, p)] for i in range(0, H, p)]
    )


def band_limited(means, grid, p, cutoff):
    """The (H, W, C) sum of cosine products of at most `cutoff` cycles per token whose block means come closest."""
    H, W = grid
    waves = []
    for a in range(H):
        for b in range(W):
            if np.all(np.array([a / (2 * H), b / (2 * W)]) <= np.asarray(cutoff) + 1e-12):
                column = np.cos(np.pi * a * (np.arange(H) + 0.5) / H)
                waves.append(np.outer(column, np.cos(np.pi * b * (np.arange(W) + 0.5) / W))[..., None])
    seen = np.stack([block_means(wave, p).reshape(-1) for wave in waves], 1)
    amplitudes = np.linalg.lstsq(seen, means.reshape(len(seen), -1), rcond=None)[0]
    return np.tensordot(np.concatenate(waves, -1), amplitudes, 1)


def resdit_fast(q, k, v, text, grid, base, phase, *, axes_dim, theta, scale, cutoff, sigma, p=2):
    """The method with its global branch on block means, for one sample."""
    (H, W), (h, w), T = grid, base, text

    def merged(out):
        return np.moveaxis(out, 0, 1).reshape(out.shape[1], -1)

    def pooled(x):
        image = [block_means(head[T:].reshape(H, W, -1), p).reshape(-1, x.shape[-1]) for head in x]
        return np.concatenate([x[:, :T], np.array(image)], 1)

    scaled = positions(H, W, H / h, W / w)
    coarse = ids_of(T, block_means(scaled.reshape(H, W, 2), p).reshape(-1, 2))
    keys = rotate(pooled(k), coarse, axes_dim, theta)
    if phase == "global":
        return merged(attention(rotate(q * scale, ids_of(T, scaled), axes_dim, theta), keys, pooled(v)))
    x_g = merged(attention(rotate(pooled(q) * scale, coarse, axes_dim, theta), keys, pooled(v)))
    local = resdit(q, k, v, T, grid, base, "local", axes_dim=axes_dim, theta=theta, scale=1, cutoff=0, sigma=sigma)
    image = local[T:].reshape(H, W, -1)
    missing = x_g[T:].reshape(-(-H // p), -(-W // p), -1) - block_means(image, p)
    image = image + band_limited(missing, grid, p, cutoff)
    return np.concatenate([x_g[:T], image.reshape(H * W, -1)])


def resdit(
    q,
    k,
    v,
    text,
    grid,
    base,
    phase,
    *,
    axes_dim,
    theta,
    scale,
    cutoff,
    sigma,
    pes=True,
    pipe=True,
    whole=None,
    patch=None,
    laws=None,
    others=None,
    first=(0.0, 0.0, 0.0),
):
    """The whole method for one sample: q, k, v (heads, T + H*W, D) -> (T + H*W, heads*D).

    `whole` are positions of the global branch other than PES's, and `laws` its frequencies; `patch` are a patch's other
    than PIPE's. `others` are the ids of the tokens before the picture, and `first` its first token's.
    """
    (H, W), (h, w), T = grid, base, text

    def merged(out):
        return np.moveaxis(out, 0, 1).reshape(out.shape[1], -1)

    scaled = positions(H, W, H / h, W / w) if whole is None else whole
    ids = ids_of(T, scaled if pes else positions(H, W), others, first)
    x_g = merged(attention(rotate(q * scale, ids, axes_dim, theta, laws), rotate(k, ids, axes_dim, theta, laws), v))
    if phase == "global":
        return x_g
    corners = [(top, left) for top in starts(H, h) for left in starts(W, w)]
    patches, texts = [], []
    for top, left in corners:
        inside = [(top + i) * W + left + j for i in range(h) for j in range(w)]
        index = [*range(T), *(T + i for i in inside)]
        own = positions(h, w) if patch is None else patch
        ids = ids_of(T, own if pipe else scaled[inside], others, first)
        q_p, k_p = (rotate(x[:, index], ids, axes_dim, theta, None if pipe else laws) for x in (q, k))
        out = merged(attention(q_p, k_p, v[:, index]))
        texts.append(out[:T])
        x_l = out[T:].reshape(h, w, -1)
        part = x_g[T:].reshape(H, W, -1)[top : top + h, left : left + w]
        patches.append(fuse(part, x_l, cutoff) if phase == "fused" else x_l)
    image = splice(patches, grid, base, corners, sigma).reshape(H * W, -1)
    return np.concatenate([x_g[:T] if phase == "fused" else np.mean(texts, 0), image])


def sincos_table(rows, cols, channels, step=1.0):
    """(H, W, C) added positions at indices rows and cols: the column's sines and cosines, then the row's."""

    def axis(index):
        frequency = 10000.0 ** (-np.arange(channels // 4) / (channels // 4))
        angle = np.asarray(index, dtype=np.float64)[:, None] * step * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    across, down = axis(cols), axis(rows)
    return np.array([[np.concatenate([c, d]) for c in across] for d in down])


def whole_index(size, length, patch):
    """Table indices of scaled positions along an axis: the centred crop of the patch's length, i / s from its first."""
    return (size - patch) // 2 + np.arange(length) * patch / length


def patch_index(size, length, patch, first, anchor=0.5):
    """Table indices of a patch: spaced by one, its centre between the base crop's and where scaled positions put it."""
    own = (size - patch) // 2 + np.arange(patch)
    scaled_centre = (size - patch) // 2 + (first + (patch - 1) / 2) * patch / length
    return own + anchor * (scaled_centre - own.mean())


def to_tokens(latent):
    """(C, 2H, 2W) -> (H, W, 4C), channels first within a token."""
    C, rows, cols = latent.shape
    out = np.zeros((rows // 2, cols // 2, 4 * C))
    for y in range(rows):
        for x in range(cols):
            for c in range(C):
                out[y // 2, x // 2, 4 * c + 2 * (y % 2) + x % 2] = latent[c, y, x]
    return out


def resdit_by_patches(latent, grid, base, phase, predict_global, predict_patch, *, cutoff, sigma):
    """The method around whole predictions of one latent (C, 2H, 2W); returns (H, W, 4C)."""
    (H, W), (h, w) = grid, base
    x_g = None if phase == "local" else to_tokens(predict_global(latent))
    if phase == "global":
        return x_g
    corners = [(top, left) for top in starts(H, h) for left in starts(W, w)]
    patches = []
    for top, left in corners:
        part = latent[:, 2 * top : 2 * (top + h), 2 * left : 2 * (left + w)]
        x_l = to_tokens(predict_patch(part, top, left))
        patches.append(x_l if x_g is None else fuse(x_g[top : top + h, left : left + w], x_l, cutoff))
    return splice(patches, grid, base, corners, sigma)


def nearest_tokens(tokens: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """The tokens (H, W, C) whose centres lie nearest to the centres of h x w equal cells; (h, w, C)."""
    for axis, side in enumerate(sides):
        length = tokens.shape[axis]
        centres = (np.arange(side) + 0.5) * length / side
        tokens = np.take(tokens, np.floor(centres).astype(int), axis)
    return tokens


def interpolated(tokens: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Tokens (h, w, C) as samples at cells' centres, linearly between them and constant beyond; (H, W, C) float64."""
    tokens = tokens.astype(np.float64)
    for axis, side in enumerate(sides):
        length = tokens.shape[axis]
        at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        columns = np.moveaxis(tokens, axis, 0).reshape(length, -1)
        new = np.stack([np.interp(at, np.arange(length), column) for column in columns.T], 1)
        shape = (side, *np.moveaxis(tokens, axis, 0).shape[1:])
        tokens = np.moveaxis(new.reshape(shape), 0, axis)
    return tokens


def by_cosines(signal, m, axis):
    """A signal's n values along an axis -> the m values with its first cosine coefficients, by their textbook sums."""
    x = np.moveaxis(np.asarray(signal, dtype=np.float64), axis, -1)
    n, kept = x.shape[-1], np.arange(min(x.shape[-1], m))
    coefficients = 2 / n * x @ np.cos(np.pi * np.outer(np.arange(n) + 0.5, kept) / n)
    coefficients[..., 0] /= 2
    return np.moveaxis(coefficients @ np.cos(np.pi * np.outer(kept, np.arange(m) + 0.5) / m), -1, axis)


def under_fresh_noise(x, levels, share, noise, denoise):
    """The picture of Euler's steps through `levels`, down to 0, when the model sees it under fresh noise.

    `denoise(what it sees, level)` is the clean latent, `noise(step)` the fresh noise; the first step has x itself.
    """
    seen, clean = x, None
    for step, level in enumerate(levels[:-1]):
        if step:
            before = levels[step - 1]
            kept = (seen - (1 - before) * clean) / before
            seen = (1 - level) * clean + level * (np.sqrt(1 - share**2) * kept + share * noise(step))
        clean = denoise(seen, level)
    return clean


def layout_estimate(latent, sigma, base, denoise):
    """A layout step's clean latent (B, C, H, W), from `denoise(latent on the base grid, its noise level)`.

    The shrunk latent is gain * sigma of noise and 1 - sigma of signal; scaled so that both sum to 1 it is at sigma'.
    """
    height, width = latent.shape[-2:]
    gain = np.sqrt(4 * base[0] * base[1] / (height * width))
    total = (1 - sigma) + gain * sigma
    seen = by_cosines(by_cosines(latent, 2 * base[0], -2), 2 * base[1], -1) / total
    clean = denoise(seen, gain * sigma / total)
    return by_cosines(by_cosines(clean, height, -2), width, -1)
