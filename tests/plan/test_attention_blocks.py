"""Which share of the grid steps of splash attention a plan counts as computed."""

import pytest

from plamo2_jax.plan.attention_blocks import computed_shares
from plamo2_jax.plan.hlo import parse_module

KERNEL = (
    "  %{name} = (bf16[32,{t},128]{{2,1,0}}) custom-call(%table, %mask, %q, %k, %k), "
    'custom_call_target="tpu_custom_call"\n'
)


def program(name, table, t, s):
    """A program that calls one kernel."""
    return f"""HloModule f, is_scheduled=true

ENTRY %main (table: s8[{table}], mask: s8[{table}], q: bf16[1,2,16,{t},128], k: bf16[1,2,2,{s},128]) -> bf16[32] {{
  %table = s8[{table}]{{2,1,0:T(8,128)(4,1)S(1)}} parameter(0)
  %mask = s8[{table}]{{2,1,0:T(8,128)(4,1)S(1)}} parameter(1)
  %q = bf16[1,2,16,{t},128]{{4,3,2,1,0}} parameter(2)
  %k = bf16[1,2,2,{s},128]{{4,3,2,1,0}} parameter(3)
{KERNEL.format(name=name, t=t)}}}
"""


@pytest.mark.parametrize(
    ("name", "table", "t", "s", "share"),
    [
        # Causal, 8 blocks of 1,024: 36 of 64.
        ("splash_mha_fwd_segmented_residuals.1", "1,8,8", 8192, 8192, 36 / 64),
        # A window of two blocks and the block itself.
        ("splash_mha_dq_segmented_no_residuals", "1,8,3", 8192, 8192, 21 / 24),
        # Two pieces of a row in four shards: 132 of 256 in each.
        ("splash_mha_fwd_segmented_residuals.2", "1,8,32", 8192, 32768, 132 / 256),
    ],
)
def test_a_share_follows_from_the_shape_of_the_table(name, table, t, s, share):
    assert computed_shares(parse_module(program(name, table, t, s))) == {name: share}


def test_the_gradient_of_the_keys_computes_the_blocks_of_the_other_kernels():
    """Its table has the columns of all keys, so its shape does not tell that there is a window."""
    text = program("splash_mha_dkv_segmented_no_residuals.1", "1,2,4", 2048, 4096)
    whole = parse_module(text)
    assert computed_shares(whole) == {"splash_mha_dkv_segmented_no_residuals.1": 5 / 8}
    forward = KERNEL.format(name="splash_mha_fwd_segmented_residuals.1", t=2048).replace("%table", "%narrow")
    narrow = "  %narrow = s8[1,2,3]{2,1,0:T(8,128)(4,1)S(1)} copy(%table)\n"
    both = parse_module(text.replace("  %splash_mha_dkv", narrow + forward + "  %splash_mha_dkv"))
    assert computed_shares(both) == {
        "splash_mha_fwd_segmented_residuals.1": 6 / 6,
        "splash_mha_dkv_segmented_no_residuals.1": 6 / 8,
    }


def test_other_kernels_compute_all_their_steps():
    assert computed_shares(parse_module(program("ssd_forward.1", "1,8,8", 8192, 8192))) == {}
