"""The method of the paper (ResDiT, arXiv 2512.01426): maths on tensors, torch and einops alone.

Nobody else's object is touched here. Where each part of the paper is, and its formula:

- PES, scaled positions of the global branch, p_h = i / s_h with s_h = H/h: `positions`, `position_table`
- PIPE, patches that attend to themselves at positions 0..h-1 x 0..w-1: `positions`, `in_attention`, `around_calls`
- MOP, the partition, t_k = (k-1)(H-h)/(N-1): `layout`
- GWS, the splice, f(p) = sum_i w_i(p) f_i(p) / sum_i w_i(p): `blend`
- PSF, the fusion, F^-1(M . F(x_g) + (1-M) . F(x_l)): `lowpass`, `blend`
- the schedule, of 35 steps 1-10 global, 11-20 fused, 21-35 local: `phases`

From a second paper (RPE-2D, arXiv 2503.18719): positions of a model trained to have them scaled, `randomized`.

From neighbours of it: NTK's and YaRN's rotary frequencies (`frequencies`) and the timestep shift (`shift`).

Of this project and not of the papers: the attention temperature (`config`), the fast modes (`pooling`), the estimate of
the cost (`cost`), the use of memory (`memory`) and the state of a generation (`run`).
"""
