"""Tiny models of families whose images keep their resolution, as vLLM can run them: heads of 32 channels at least."""

from families.native import MROPE, TOKEN, TOWER, qwen
from tiny import Tiny

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
ROPE = {**MROPE, "mrope_section": [4, 6, 6]}


def qwen2_vl() -> Tiny:
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    return qwen("Qwen2VL", "Qwen2VL", vision, **HEADS, rope_parameters=ROPE)


def qwen2_5_vl() -> Tiny:
    vision = {**TOWER, "window_size": 2 * TOKEN, "fullatt_block_indexes": [1]}
    return qwen("Qwen2_5_VL", "Qwen2_5_VL", vision, **HEADS, rope_parameters=ROPE)


def qwen3_vl() -> Tiny:
    vision = {**TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    # transformers interleaves without being told.
    rope = {**MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return qwen("Qwen3VL", "Qwen3VL", vision, **HEADS, rope_parameters=rope)


BUILT = {family.__name__: family for family in (qwen2_vl, qwen2_5_vl, qwen3_vl)}
