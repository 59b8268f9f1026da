"""Plans: which kernels an operation launches for one signature, with which blocks and workspaces.

Large maps take one launch per pass over x or over vectors, small ones one launch in all where that is predicted to be
faster. Both leave and expect the same workspaces, so forward and backward are chosen apart.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...core import parameters
from ..common import batch_sum, tiles, tuning
from ..common.launch import Grid, Launch, processors
from . import (
    axis_gate,
    axis_gate_backward,
    axis_mean,
    channel_attention,
    channel_attention_backward,
    gated_gather,
    gated_pool,
    gated_product,
    gated_product_backward,
    layout,
    predict,
    small,
)

SMALL = 16  # pixels on a side, up to which one program can hold an axis of many channels
SMALL_SAMPLE = 1 << 17  # elements of x that one program may take through all stages
SMALL_ATTENTION = 1 << 19  # pairs of channels
MOST = (1 << 29) - 1  # elements of a sample, whose workspace is indexed by 32 bits; samples themselves by 64
FORWARD = ("x", "out", "saved")  # the tensors of a call, before its parameters
BACKWARD = ("grad_out", "x", "saved", "scratch", "grad_x", "grad_params")


def saved_size(spatial: bool, channel: bool, shape: Sequence[int], options: tuple) -> int:
    """Return how many floats per sample forward saves for backward."""
    _, channels, height, width = shape
    size = layout.AXIS_STATISTICS.value + channels * 2 * (height + width) if spatial else 0
    if channel:
        _, window, mode, _ = options
        pixels = 1 if window == -1 else (height // window) * (width // window)
        size += layout.POOLED_STATISTICS.value
        size += channels * (6 + pixels * (2 if mode == "max_pool" and window != -1 else 1))
    return size


class Plan:
    """The launches of one signature: `forward` and `backward`, and the float32 workspaces they need per sample.

    `saved` is what forward leaves for backward, `scratch` what backward's launches tell each other.
    """

    def __init__(
        self, spatial: bool, channel: bool, shape: Sequence[int], numels: Sequence[int], options: tuple,
        x_dtype: torch.dtype, out_dtype: torch.dtype, param_dtype: torch.dtype, channels_last: bool,
        device: torch.device,
    ):  # fmt: skip
        self.spatial, self.channel, self.channels_last = spatial, channel, channels_last
        self.batch, self.channels, self.height, self.width = shape
        if self.channels * self.height * self.width > MOST:
            raise ValueError(f"a sample of x has {self.channels * self.height * self.width} elements; at most {MOST}")
        kernels, qkv_bias = parameters.sizes(spatial, channel, self.channels, numels)
        heads, window, mode, gate = options if channel else (1, -1, "avg_pool", *options)
        self.window = (self.height, self.width) if window == -1 else (window, window)
        self.max = channel and mode == "max_pool" and window != -1
        self.head = self.channels // heads
        self.item, self.device = x_dtype.itemsize, device
        self.processors = processors(device)
        self.windows = (self.height // self.window[0], self.width // self.window[1]) if channel else (0, 0)
        pairs = self.channels * self.head if channel else 0
        self.small = (  # one program can take a sample through all stages
            max(self.height, self.width) <= SMALL
            and self.channels * self.height * self.width <= SMALL_SAMPLE
            and pairs <= SMALL_ATTENTION
        )
        if not channel:  # rows and columns of x in blocks that suit the loads
            self.window = (8, 8)
        self._choose_columns()
        self.saved_size = saved_size(spatial, channel, shape, options)
        self.scratch_size = self._scratch_size(sum(numels))
        self.constants = {
            "NHWC": channels_last,
            "SPATIAL": spatial,
            "CHANNEL": channel,
            "MAX": self.max,
            "WINDOWS": spatial and channel and not self.max,
            "BIAS": qkv_bias,
            "SOFTMAX": gate == "softmax",
            "ALIGN": tiles.alignment(self.channels if channels_last else self.width),
            "COLUMNS": self.columns,
            "SPLIT": self.parts > 1,
            "KERNELS": kernels,
            "KMAX": max(kernels),
            "BLOCK": min(1024, max(128, tiles.power(self.channels))),
            "POOLED_BLOCK": min(tiles.TILE, 64 * tiles.power(self.channels)),
        }
        self.sizes = {
            "B": self.batch, "C": self.channels, "H": self.height, "W": self.width,
            "WH": self.window[0], "WW": self.window[1], "NI": self.windows[0], "NJ": self.windows[1],
            "D": self.head, "PARTS": self.parts, "SAVED": self.saved_size, "SCRATCH": self.scratch_size,
            "GRADS": sum(numels),
        }  # fmt: skip
        self.first = len(layout.AXES) if spatial else 0  # of the attention's parameters
        self.names = _names(spatial, channel, qkv_bias)
        self.dtypes = dict(zip(layout.PARAMETERS, self.grouped((param_dtype,) * len(self.names)), strict=True))
        self.dtypes |= {"x": x_dtype, "grad_x": x_dtype, "out": out_dtype, "grad_out": out_dtype}
        self.dtypes |= {"saved": torch.float32, "scratch": torch.float32, "grad_params": param_dtype}
        self.forward = self._faster(self._small_forward, self._large_forward())
        self._backward: dict[tuple[bool, bool], tuple[Launch, ...]] = {}
        self.backward = self.part_of_backward(True, True)

    def grouped(self, params: tuple) -> tuple[tuple, tuple, Any]:
        """Return an operation's parameters as kernels take them; the first stands in for what it does not have."""
        axes, attention = params[: self.first or 1], params[self.first :] or params[:1]
        return axes, attention, attention[0]

    def part_of_backward(self, need_x: bool, need_params: bool) -> tuple[Launch, ...]:
        """Return the launches that these gradients need."""
        wanted = need_x, need_params
        if wanted not in self._backward:
            launches = self._faster(lambda: self._small_backward(need_x), self._large_backward(need_x))
            self._backward[wanted] = (*launches, self._batch_sum()) if need_params else launches
        return self._backward[wanted]

    def _faster(self, one: Callable[[], Launch], each: tuple[Launch, ...]) -> tuple[Launch, ...]:
        """Return the launches of all stages, or the one launch that does the same for a small map."""
        if not self.small:
            return each
        whole, pooled = one(), self.windows[0] * self.windows[1]
        sizes = self.channels, self.height, self.width, self.head, pooled
        work = {launch.name: predict.instructions(launch.name, *sizes) for launch in each}
        return (whole,) if predict.one_launch_is_faster(whole, each, work, self.batch, self.processors) else each

    def _choose_columns(self) -> None:
        """Choose the columns of a block of x, fewer where channels and samples alone would not fill a GPU."""
        most = tiles.COLUMNS
        least = 8 if self.channels_last and not self.small else most
        while True:
            self.columns = tiles.columns_per_block(self.width, self.window[1], most)
            self.parts = -(-self.width // self.columns)
            programs = self.batch * self.parts * -(-self.channels // self._segment(tiles.SEGMENT // 2))
            if most == least or programs >= self.processors // 2:
                return
            most //= 2

    def _segment(self, size: int = tiles.SEGMENT) -> int:
        """Return how many neighbouring channels are that many bytes."""
        return min(tiles.power(self.channels), size // self.item)

    def _channels_per_block(self) -> int:
        """Return the channels of a channels_last block: a segment, or half where programs are few."""
        full = self._segment()
        programs = self.batch * self.parts * -(-self.channels // full)
        return full if programs >= 2 * self.processors else self._segment(tiles.SEGMENT // 2)

    def _scratch_size(self, grads: int) -> int:
        c, h, w = self.channels, self.height, self.width
        (ni, nj), parts = self.windows, self.parts
        size = parts + ni * nj
        if self.spatial:
            size += w + h + w + parts * h + (0 if self.max else nj * h + ni * w)
        return c * size + grads

    def _launch(
        self, kernel: Any, grid: Sequence[int] | Callable[[Mapping[str, Any]], Grid], names: Sequence[str],
        num_warps: int, constants: Mapping[str, Any], rows: int = 0, alternatives: Sequence[Mapping[str, int]] = (),
        registers: int | None = None,
    ) -> Launch:  # fmt: skip
        """Bind a kernel's parameters by their names, to what the plan knows or what is given."""
        known: dict[str, Any] = {**self.constants, **constants}
        sizes = self.sizes | {"ROWS": rows}
        arguments = list(inspect.signature(kernel.fn).parameters)
        tensors = [name for name in arguments if name in (*names, *layout.PARAMETERS)]
        if not callable(grid):
            x, y, z = (*grid, 1, 1)[:3]
            fixed = x, y, z
        launch = Launch(
            kernel,
            grid if callable(grid) else lambda _: fixed,
            tensors,
            (*names, *layout.PARAMETERS),
            {name: sizes[name] for name in arguments if name in sizes},
            {name: known[name] for name in arguments if name in known},
            num_warps,
            alternatives,
            (self.device, *(self.dtypes[name] for name in tensors)),
            registers=registers,
        )
        return tuning.apply(launch)

    def _row_tile(self, rows: int, most: int = tiles.TILE, small: bool = False) -> dict[str, int]:
        """Return a tile [BC, BR, BW] that covers the block's columns and, at most, so many rows."""
        width = tiles.power(self.columns)
        if not (self.channels_last or small):
            most //= 2
        most = max(most, width)
        if self.channels_last:
            channels = self._segment() if small else self._channels_per_block()
            bw, bc, br = tiles.fit(most, width, channels, rows)
            if small:
                bc *= min(most // (bw * bc * br), tiles.power(self.channels) // bc) or 1
        else:
            bw, br, bc = tiles.fit(most, width, min(rows, 16 if small else 8), self.channels)
        return {"BC": bc, "BR": br, "BW": bw}

    def _window_tile(self, most: int = tiles.TILE, small: bool = False) -> dict[str, int]:
        """Return the tile of a pass by windows: [BC, BI * BR, BW], whose columns are gathered, or [BC, BR, BJ, BV]."""
        tile = self._row_tile(self.height, most, small)
        bi = min(tile["BR"], tiles.power(-(-self.height // self.window[0])))
        per_block = -(-min(self.columns, self.width) // self.window[1])
        bv, bj = tiles.power(self.window[1]), tiles.power(per_block)
        tile |= {"BI": bi, "BR": tile["BR"] // bi}
        if self.channels_last or self.max:
            channels = self._segment() if small else self._channels_per_block()
            most = max(most, bv * bj)
            bv, bj, bc, br = tiles.fit(most, bv, bj, channels, self.window[0])
            if small:
                bc *= min(most // (bv * bj * bc * br), tiles.power(self.channels) // bc) or 1
            tile |= {"BC": bc, "BI": 1, "BR": br}
        return {**tile, "BJ": bj, "BV": bv}

    def _gate_tile(self, length: int, most: int = tiles.TILE) -> tuple[int, int, int]:
        """Return the channels of a group in a tile, its length, and how many tiles cover the group."""
        group = self.channels // 4
        bl, bg = tiles.fit(max(most, tiles.power(length)), length, group)
        return bg, bl, -(-group // bg)

    def _pass(self, kernel: Any, names: Sequence[str], tile: Mapping[str, int], registers: int | None = None) -> Launch:
        """Launch over blocks of channels and columns of x; more or fewer channels are alternatives."""
        rows = tile.get("BI", 1) * tile["BR"]
        elements = tile["BC"] * rows * max(tile["BW"], tile.get("BJ", 1) * tile.get("BV", 1))
        channels = [bc for bc in (tile["BC"] // 2, 2 * tile["BC"]) if 1 <= bc <= tiles.power(self.channels)]

        def grid(constants: Mapping[str, Any]) -> Grid:
            return self.batch * -(-self.channels // constants["BC"]), self.parts, 1

        others = [{"BC": bc} for bc in channels]
        return self._launch(kernel, grid, names, tiles.warps(elements), tile, alternatives=others, registers=registers)

    def _large_forward(self) -> tuple[Launch, ...]:
        launches = []
        if self.spatial:
            launches.append(self._pass(axis_mean.axis_mean_kernel, FORWARD, self._row_tile(self.height)))
            bg, bl, count = self._gate_tile(max(self.height, self.width))
            blocks = {"TILES": count, "BG": bg, "BL": bl}
            grid = (self.batch, 4, 2)
            launches.append(self._launch(axis_gate.axis_gate_kernel, grid, FORWARD, tiles.warps(bg * bl), blocks))
        if self.channel:
            launches.append(self._pass(gated_pool.gated_pool_kernel, FORWARD, self._window_tile()))
            launches.append(self._attention(channel_attention.channel_attention_kernel, FORWARD))
        tile = self._row_tile(self.height)
        launches.append(self._pass(gated_product.gated_product_kernel, FORWARD, tile, tiles.REGISTERS))
        return tuple(launches)

    def _attention(self, kernel, names) -> Launch:
        bi, bj = tiles.attention_rows(self.channels, self.head)
        # either strategy for a small map must form the other's scores to the last bit
        bn = 1 if self.small else tiles.attention_pixels(self.windows[0] * self.windows[1], bj)
        whole = kernel is channel_attention.channel_attention_kernel and self.constants["SOFTMAX"]
        rows = self.channels if whole else bi  # a softmax gate needs all channels' logits
        grid = (self.batch, -(-self.channels // rows))
        return self._launch(kernel, grid, names, tiles.warps(bi * bj), {"BI": bi, "BJ": bj, "BN": bn}, rows)

    def _large_backward(self, need_x: bool) -> tuple[Launch, ...]:
        tile = self._window_tile(tiles.TILE // 2)
        if not self.channels_last and self.constants["ALIGN"] * self.item < 8:  # an address for each load
            tile["BR"] = max(1, tile["BR"] // 2)
        launches = [self._pass(gated_gather.gated_gather_kernel, BACKWARD, tile)]
        if self.channel:
            launches.append(self._attention(channel_attention_backward.channel_attention_backward_kernel, BACKWARD))
        if self.spatial:
            bg_h, bh, tiles_h = self._gate_tile(self.height)
            bg_w, bw, tiles_w = self._gate_tile(self.width)
            blocks = {"TILES_H": tiles_h, "TILES_W": tiles_w, "BG_H": bg_h, "BG_W": bg_w, "BH": bh, "BW": bw}
            warps = 8  # many tiles live at once: with fewer it spills
            kernel = axis_gate_backward.axis_gate_backward_kernel
            grid = (self.batch, 4)
            launches.append(self._launch(kernel, grid, BACKWARD, warps, blocks, registers=tiles.REGISTERS))
        else:
            block = min(self.constants["BLOCK"], 128)
            grid = (self.batch, -(-self.channels // block))
            kernel = channel_attention_backward.pooled_gradient_kernel
            launches.append(self._launch(kernel, grid, BACKWARD, 4, {"BLOCK": block}))
        if need_x:
            tile = self._row_tile(self.window[0])
            launches.append(self._pass(gated_product_backward.input_gradient_kernel, BACKWARD, tile))
        return tuple(launches)

    def _small(self, most: int = tiles.TILE) -> dict[str, int]:
        """Return the blocks that both small kernels share, with tiles within a limit."""
        windows = self._window_tile(most, small=True)
        bi, bj = tiles.attention_rows(self.channels, self.head, most)
        blocks = {"WINDOW_BC": windows["BC"], "WINDOW_BI": windows["BI"], "WINDOW_BR": windows["BR"]}
        blocks |= {"BJ": windows["BJ"], "BV": windows["BV"]}
        blocks |= {"ATTENTION_BI": bi, "ATTENTION_BJ": bj}
        blocks |= {"BW": tiles.power(self.width), "BH": tiles.power(self.height)}
        group = tiles.power(self.channels // 4) * max(blocks["BW"], blocks["BH"])
        groups = tiles.fit(most, group, 4)[1]
        bg_h, _, tiles_h = self._gate_tile(self.height, most // groups)
        bg_w, _, tiles_w = self._gate_tile(self.width, most // groups)
        return blocks | {"NG": groups, "BG_H": bg_h, "BG_W": bg_w, "TILES_H": tiles_h, "TILES_W": tiles_w}

    def _small_forward(self) -> Launch:
        blocks = self._small() | self._row_tile(self.height, small=True)
        step = max(blocks["BC"], blocks["ATTENTION_BI"])
        programs = 1 if not self.channel or self.constants["SOFTMAX"] else max(1, self.processors // self.batch)
        rows = -(-self.channels // (step * programs)) * step
        grid = (self.batch, -(-self.channels // rows))
        return self._launch(small.small_forward_kernel, grid, FORWARD, 16, blocks, rows, registers=tiles.REGISTERS)

    def _small_backward(self, need_x: bool) -> Launch:
        blocks = self._small(tiles.TILE // 2) | self._row_tile(self.window[0], tiles.TILE // 2, small=True)
        return self._launch(small.small_backward_kernel, (self.batch,), BACKWARD, 8, blocks | {"NEED_X": need_x})

    def _batch_sum(self) -> Launch:
        block, rows = 64, tiles.fit(32, self.batch)[0]
        grid = (-(-self.sizes["GRADS"] // block),)
        return self._launch(batch_sum.batch_sum_kernel, grid, BACKWARD, 4, {"BB": rows, "BLOCK": block})


def _names(spatial: bool, channel: bool, qkv_bias: bool) -> tuple[str, ...]:
    """Return the operation's parameters in its order."""
    return layout.AXES * spatial + layout.ATTENTION[: 8 if qkv_bias else 5] * channel
