"""What the registry knows of the native-resolution families of `native_more`, `gemma4`, `omni` and `nemotron_h_omni`.

And of `minicpmv4_7`, whose images are cut, but whose tokens are numbered by their places in them too.
"""

from __future__ import annotations

from globalcom2.adapters.family import Family

REAL = "random weights with the real processor; videos not"
STAND_IN = (
    "random weights; the real processor around a stand-in for its image processor, which needs torchvision; videos not"
)
CLOSED = "exact; closed positions alone"

NATIVE_FAMILIES = tuple(
    Family(
        kind,
        f"globalcom2.adapters.{adapter}",
        "minus cosine to the mean of the image (tower without [CLS])",
        "none; a guide commands windows of its tokens and is not read",
        tested,
        budget,
        checkpoints=(checkpoint,),
    )
    for kind, adapter, checkpoint, tested, budget in (
        ("exaone4_5", "native_more:Exaone45Adapter", "LGAI-EXAONE/EXAONE-4.5-33B", REAL, CLOSED),
        ("glm5_next", "native_more:Glm5NextAdapter", "zai-org/GLM-5.3-Flash", REAL, "exact"),
        ("cohere_compass", "native_more:QwenKinAdapter", "CohereLabs/North-Micro-Vision-Instruct", REAL, "exact"),
        ("lighton_ocr", "native_more:LightOnOcrAdapter", "lightonai/LightOnOCR-1B-1025", REAL, "exact"),
        ("gemma4", "gemma4:Gemma4Adapter", "google/gemma-4-E2B-it", REAL, "exact"),
        ("gemma4_unified", "gemma4:Gemma4UnifiedAdapter", "google/gemma-4-12B-it", STAND_IN, "exact"),
        ("lfm3_vl", "native_more:Lfm3VLAdapter", "LiquidAI/LFM3-VL-2B", REAL, "exact"),
        ("minimax_m3_vl", "native_more:MiniMaxM3VLAdapter", "MiniMaxAI/MiniMax-M3", STAND_IN, CLOSED),
        ("video_llama_3", "native_more:VideoLlama3Adapter", "lkhl/VideoLLaMA3-2B-Image-HF", REAL, "exact"),
        (
            "hyperclovax_vision_v2",
            "native_more:HyperClovaXVisionAdapter",
            "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
            REAL,
            CLOSED,
        ),
        ("cosmos3_omni", "native_more:QwenKinAdapter", "nvidia/Cosmos3-Nano", REAL, "exact"),
        ("cosmos3_edge", "native_more:Cosmos3EdgeAdapter", "nvidia/Cosmos3-Edge", REAL, "exact"),
        ("muse_glimmer", "native_more:MuseGlimmerAdapter", "meta-models/Muse-Glimmer-30B", STAND_IN, "exact"),
        ("qwen4_exp", "native_more:QwenKinAdapter", "Qwen/Qwen4-Exp", REAL, "exact"),
        (
            "mistral_large4",
            "mistral3:Mistral3Adapter",
            "mistralai/Mistral-Large-4-1T-A52B",
            REAL,
            "exact; a break after each row of an image stays and is not counted",
        ),
        (
            "qwen2_5_omni_thinker",
            "omni:WindowedThinkerAdapter",
            "Qwen/Qwen2.5-Omni-7B",
            "random weights with the real image processor; sound and videos not",
            "exact",
        ),
        (
            "qwen3_omni_moe_thinker",
            "omni:ThinkerAdapter",
            "Qwen/Qwen3-Omni-30B-A3B-Instruct",
            "random weights with the real image processor; sound and videos not",
            "exact",
        ),
        (
            "nemotron_h_omni",
            "nemotron_h_omni:NemotronHOmniAdapter",
            "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
            f"{STAND_IN}; sound not",
            "exact",
        ),
        ("dots3_note", "native_more:Dots3NoteAdapter", "dots-studio/dots3-note-prev", REAL, "exact"),
    )
)

NATIVE_FAMILIES += (
    Family(
        "minicpmv4_7",
        "globalcom2.adapters.minicpmv4_7:MiniCPMV47Adapter",
        "similarity of projected features (SigLIP tower without [CLS])",
        "first, with its own token grid",
        REAL,
        "exact; tags between views stay and are not counted; grid from the tags",
        checkpoints=("openbmb/MiniCPM-V-4.7-1B",),
    ),
)

NATIVE_UNSUPPORTED = {
    "hunyuan_vl": "newlines and bounds stand among its placeholders, and a prompt's positions depend on the images of others",
    "hy_v4_vl": "each row of an image's tokens ends with a newline among the placeholders, which no guide knows yet",
    "inkling": "its calls do not tell how the patches of an image lie",
    "qwen2_5_omni": "it is several models; compress its thinker, model.thinker, which reads images",
    "qwen3_omni_moe": "it is several models; compress its thinker, model.thinker, which reads images",
}
"""Families whose images keep their resolution, or seem to, and do not work with this package, with the reason."""
