"""Tiny random-weight models of every family, with their real processors. One module per group of families."""

from collections.abc import Callable

from families import llava
from families.internvl import aya_vision, cohere2_vision, got_ocr2, internvl, qianfan_ocr
from families.tagged import idefics3, llama4, ovis2, smolvlm
from families.unequal import lfm2_vl, minicpmv4_6, step3p7
from tiny import Tiny, llava_next

FAMILIES: dict[str, Callable[[], Tiny]] = {"llava_next": llava_next, "idefics3": idefics3, "smolvlm": smolvlm}
FAMILIES |= {"llava_onevision": llava.llava_onevision, "llava_next_video": llava.llava_next_video}
FAMILIES |= {"granite4_vision": llava.granite4_vision}
FAMILIES |= {"llama4": llama4, "ovis2": ovis2}
FAMILIES |= {"internvl": internvl, "qianfan_ocr": qianfan_ocr, "aya_vision": aya_vision}
FAMILIES |= {"cohere2_vision": cohere2_vision, "got_ocr2": got_ocr2}
FAMILIES |= {"lfm2_vl": lfm2_vl, "minicpmv4_6": minicpmv4_6, "step3p7": step3p7}
