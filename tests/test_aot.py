"""What the TPU compiler foresees: reading its text, slices by name, a real compilation where libtpu is."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode import forward, programs
from pasta_jax.decode.lanes import main_lanes
from pasta_jax.eval import aot_hlo, aot_target
from pasta_jax.model.cache import empty_cache
from pasta_jax.model.layers import linear
from tests.toy import toy_model

# Cut from a compiled segment of gemma-2b for v5e; one layer, two attended lengths, sampling with top-k.
EXCERPT = """\
HloModule jit_segment, is_scheduled=true

%fused_computation.1 (param_0.1: bf16[16384,2048]) -> bf16[8,16384] {
  %param_0.1 = bf16[16384,2048]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %convolution.1 = bf16[8,16384]{1,0:T(8,128)(2,1)} convolution(%param_0.1, %param_0.1), dim_labels=bf_oi->bf
}

%region_14.33 (arg_tuple.2: (bf16[1,1,1024,256])) -> (bf16[8,2048]) {
  %arg_tuple.2 = (bf16[1,1,1024,256]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %fusion.10 = (bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) fusion(%arg_tuple.2), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(segment)/while/body/layer_0/attention/cond/branch_0_fun/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
}

%region_17.37 (arg_tuple.4: (bf16[1,1,1024,256])) -> (bf16[8,2048]) {
  %arg_tuple.4 = (bf16[1,1,1024,256]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %fusion.11 = (bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) fusion(%arg_tuple.4), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(segment)/while/body/layer_0/attention/cond/branch_1_fun/dot_general"}, backend_config={"window_config":{"estimated_cycles":"3000"}}
}

%region_48.72 (sample.0: (s32[8])) -> (s32[8]) {
  ROOT %sample.0 = (s32[8]{0:T(128)}) parameter(0)
}

%region_54.88 (wide.arg_tuple.29: (s32[], u32[8])) -> pred[] {
  %constant.2127 = s32[]{:T(128)} constant(32)
  %wide.arg_tuple.29 = (s32[]{:T(128)}, u32[8]{0:T(128)S(1)}) parameter(0)
  %get-tuple-element.2134 = s32[]{:T(128)} get-tuple-element(%wide.arg_tuple.29), index=0
  ROOT %lt.164 = pred[]{:T(512)} compare(%get-tuple-element.2134, %constant.2127), direction=LT, metadata={op_name="jit(segment)/while/body/sample/cond/branch_2_fun/while/cond/lt"}
}

%region_52.87 (wide.arg_tuple.3: (s32[], u32[8])) -> (s32[], u32[8]) {
  %wide.arg_tuple.3 = (s32[]{:T(128)}, u32[8]{0:T(128)S(1)}) parameter(0)
  ROOT %fusion.12 = (s32[]{:T(128)}, u32[8]{0:T(128)S(1)}) fusion(%wide.arg_tuple.3), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(segment)/while/body/sample/cond/branch_2_fun/while/body/or"}, backend_config={"window_config":{"estimated_cycles":"10"}}
}

%region_51.98 (arg_tuple.28: (s32[8])) -> (s32[8]) {
  %arg_tuple.28 = (s32[8]{0:T(128)}) parameter(0)
  ROOT %while.13 = (s32[]{:T(128)}, u32[8]{0:T(128)S(1)}) while(%arg_tuple.28), condition=%region_54.88, body=%region_52.87, metadata={op_name="jit(segment)/while/body/sample/cond/branch_2_fun/while"}
}

%wide.region_0.124 (wide.arg_tuple.0: (s32[], bf16[16384,2048])) -> (s32[], bf16[16384,2048]) {
  %wide.arg_tuple.0 = (s32[]{:T(128)}, bf16[16384,2048]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = bf16[16384,2048]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.arg_tuple.0), index=1
  %slice-start.4 = ((bf16[16384,2048]{1,0:T(8,128)(2,1)}), bf16[4096,2048]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%get-tuple-element.1), slice={[0:4096], [0:2048]}
  %fusion.636 = (s32[]{:T(128)}, s32[]{:T(128)}) fusion(%wide.arg_tuple.0), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(segment)/while/body/reduce_max"}, backend_config={"window_config":{"estimated_cycles":"1830"}}
  %conditional.30 = (bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) conditional(%fusion.636, %wide.arg_tuple.0, %wide.arg_tuple.0), branch_computations={%region_14.33, %region_17.37}
  %all-reduce.1 = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} all-reduce(%conditional.30), to_apply=%region_48.72, metadata={op_name="jit(segment)/while/body/layer_0/attention/dot_general"}
  %slice-done.4 = bf16[4096,2048]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.4)
  %fusion.647 = bf16[8,16384]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.1, %slice-done.4), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(segment)/while/body/layer_0/feed_forward/dot_general"}, backend_config={"window_config":{"estimated_cycles":"185786"}}
  %conditional.32 = (s32[8]{0:T(128)}) conditional(%fusion.636, %wide.arg_tuple.0, %wide.arg_tuple.0, %wide.arg_tuple.0), branch_computations={%region_48.72, %region_48.72, %region_51.98}, metadata={op_name="jit(segment)/while/body/sample/cond"}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[16384,2048]{1,0:T(8,128)(2,1)}) tuple(%fusion.636, %get-tuple-element.1)
}

%region_75.126 (wide.arg_tuple.1: (s32[])) -> pred[] {
  ROOT %wide.arg_tuple.1 = pred[]{:T(512)} parameter(0)
}

ENTRY %main.127 (params__embed__.1: bf16[256000,2048]) -> (s32[]) {
  %params__embed__.1 = bf16[256000,2048]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  ROOT %while.1 = (s32[]{:T(128)}, bf16[16384,2048]{1,0:T(8,128)(2,1)}) while(%params__embed__.1), condition=%region_75.126, body=%wide.region_0.124, metadata={op_name="jit(segment)/while"}
}
"""  # noqa: E501
BYTES_PER_CYCLE = 819e9 / 1.5e9


def excerpt_estimate(way: int, length: int = -1) -> aot_hlo.Estimate:
  module = aot_hlo.parse(EXCERPT)
  (body,) = aot_hlo.step_bodies(module)

  def choose(op_name: str, branches: int) -> int:
    return way if aot_hlo.scope_of(op_name) == "sample" else length % branches

  return aot_hlo.estimate(module, body, choose, BYTES_PER_CYCLE)


def test_cycles_of_a_step_are_told_apart_by_scope():
  estimate = excerpt_estimate(way=0)
  assert estimate.cycles == {"interpreter": 1830, "attention": 3000, "feed_forward": 185786}
  assert estimate.parts == {"interpreter": 1, "attention": 1, "feed_forward": 1}


def test_one_branch_of_a_conditional_counts_even_if_it_has_no_name_of_its_own():
  assert excerpt_estimate(way=0, length=0).cycles["attention"] == 1000


def test_a_loop_on_the_path_is_named_and_counts_as_often_as_it_turns():
  assert excerpt_estimate(way=0).loops == []
  looping = excerpt_estimate(way=2)
  assert looping.loops == ["jit(segment)/while/body/sample/cond/branch_2_fun/while"]
  assert looping.cycles["sample"] == 32 * 10


def test_whoever_needs_a_copy_waits_for_what_the_bandwidth_has_not_moved():
  estimate = excerpt_estimate(way=0)
  size = 4096 * 2048 * 2
  assert estimate.transfers == size
  # Meanwhile two instructions ran: one beside the bookkeeping's, whose operand fills the bandwidth, and one
  # of 3000 cycles that reads keys of 0.5 MB.
  meanwhile = 3000 * BYTES_PER_CYCLE - 1024 * 256 * 2
  assert sum(estimate.waits.values()) == pytest.approx((size - meanwhile) / BYTES_PER_CYCLE)
  assert estimate.total_cycles == sum(estimate.cycles.values()) + sum(estimate.waits.values())


def test_collectives_are_counted_with_their_bytes():
  assert excerpt_estimate(way=0).collectives == {"all-reduce": (1, 8 * 2048 * 2)}


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no entry computation"):
    aot_hlo.parse("HloModule nothing\n")


def test_a_clock_shares_the_bandwidth_first_come_first_served():
  clock = aot_hlo.Clock(bytes_per_cycle=2.0)
  clock.start("a", 100)
  clock.start("b", 10)
  clock.run(cycles=10, size=20)  # fills the bandwidth itself
  assert clock.wait("b") == 55  # "a" is before it
  assert clock.wait("a") == 0


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v5:2x2", "did you mean 'v5"),
    ("v5e", "is not a generation and its shape"),
    ("v5e:2x2x1", "slices have 2 sizes"),
    ("v6e:3x2", "first two sizes are even"),
    ("v5p:0x2x1", "is not a generation and its shape"),
  ],
)
def test_a_slice_that_does_not_exist_is_refused_with_one_line(text, message):
  with pytest.raises(ValueError, match=message) as e:
    aot_target.parse_topology(text)
  assert "\n" not in str(e.value)


def test_slices_by_name():
  assert aot_target.parse_topology("v5e:2x4") == (aot_target.CHIPS["v5e"], (2, 4))
  assert aot_target.parse_topology("v5p:2x2") == (aot_target.CHIPS["v5p"], (2, 2, 1))
  assert aot_target.parse_topology("v6e:1x1")[1] == (1, 1)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r"pip install 'pasta_jax\[tpu\]'") as e:
    aot_target.describe("v5e:1x1")
  assert "\n" not in str(e.value)


def test_on_tpu_the_output_projection_is_not_copied_into_another_shape():
  x, w = jnp.zeros((1, 8, 4, 16)), jnp.zeros((32, 4, 16))

  def text(platform: str) -> str:
    traced = jax.jit(lambda x, w: linear(x, w, inputs=2)).trace(x, w)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert "contracting_dims = [1, 2] x [1, 2]" in text("tpu")
  assert "contracting_dims = [1] x [1]" in text("cpu")


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_that_pad_a_product_change_nothing(batch):
  model = toy_model()
  cache = empty_cache(model.config, batch, 32, jnp.float32)
  ids = jnp.arange(batch, dtype=jnp.int32)[:, None] + 7
  lanes = main_lanes(ids, jnp.zeros_like(ids), jnp.ones(ids.shape, bool))

  @jax.jit
  def both(params, cache, lanes):
    at = jnp.int32(3)
    return [
      forward.lane_logits(model.config, params, (32,), cache, lanes, at, least_rows=n)
      for n in (1, programs.least_rows("tpu"))
    ]

  plain, padded = both(model.params, cache, lanes)
  assert plain[0].shape == padded[0].shape
  assert float(jnp.std(plain[0])) > 0.1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, padded)


def compile_ahead(source: str) -> dict:
  """What `source` prints as JSON, in a process of its own: libtpu changes its surroundings."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("the TPU compiler is not installed here: pip install 'pasta_jax[tpu]' to run this test")
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  out = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(source)],
    capture_output=True,
    text=True,
    env=environment,
    timeout=600,
  )
  assert out.returncode == 0, out.stderr[-2000:]
  return json.loads(out.stdout.splitlines()[-1])


def test_a_step_compiled_for_tpu_has_no_serial_loop_and_fits():
  figures = compile_ahead("""
    import json
    from pasta_jax.eval.aot_report import Decoder, report
    from pasta_jax.eval.aot_target import describe
    from pasta_jax.model.presets import preset
    cfg = preset("gemma-2b").replace(num_layers=1, vocab_size=4096)
    print(json.dumps(report(cfg, describe("v5e:2x2"), Decoder(lanes=16, slots=128), "tensor:4")))
  """)
  assert figures["chips"] == 4
  assert "not a measurement" in figures["basis"]
  assert [s["width"] for s in figures["steps"]] == [8, 16]
  for step_ in figures["steps"]:
    assert step_["loops"] == []
    assert step_["loops_by_draw"] == {"greedy": 0, "temperature": 0, "top_k_top_p": 2}
    assert step_["estimated_ms"] > 0
    assert {"attention", "feed_forward", "logits", "interpreter"} <= set(step_["parts_ms"])
    assert step_["collectives"]
  assert set(figures["programs"]) == {"segment", "prefill_128"}
  assert figures["fits"]
  for program in figures["programs"].values():
    assert program["total_bytes"] > figures["weights_bytes_per_chip"]
    assert program["flops"] > 0
