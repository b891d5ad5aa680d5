"""What the registry knows of families whose images keep their resolution."""

from __future__ import annotations

from globalcom2.adapters.family import Family

WITHOUT_VIDEOS = "random weights with the real processor; videos not"
VIDEOS_TOO = "random weights with the real processor; videos as tensors, their processor needs torchvision"
REAL = "random weights with the real processor"
STAND_IN = (
    "random weights; the real processor around a stand-in for its image processor, which needs torchvision; videos not"
)
CLOSED = "exact; closed positions alone"
SERVED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families that this package's vLLM plugin compresses."""

NATIVE_FAMILIES = tuple(
    Family(
        kind,
        f"globalcom2.adapters.{adapter}",
        "minus cosine to the mean of the image (tower without [CLS])",
        "none; a guide commands windows of its tokens and is not read",
        tested,
        budget,
        checkpoints=(checkpoint,),
        vllm=kind in SERVED,
    )
    for kind, adapter, checkpoint, tested, budget in (
        ("qwen2_vl", "qwen_vl:QwenVLAdapter", "Qwen/Qwen2-VL-7B-Instruct", VIDEOS_TOO, "exact"),
        ("qwen2_5_vl", "qwen_vl:Qwen25VLAdapter", "Qwen/Qwen2.5-VL-7B-Instruct", VIDEOS_TOO, "exact"),
        ("qwen3_vl", "qwen_vl:QwenVLAdapter", "Qwen/Qwen3-VL-4B-Instruct", VIDEOS_TOO, "exact"),
        ("qwen3_vl_moe", "qwen_vl:QwenVLAdapter", "Qwen/Qwen3-VL-30B-A3B-Instruct", VIDEOS_TOO, "exact"),
        ("qwen3_5", "qwen_vl:QwenVLAdapter", "Qwen/Qwen3.5-27B", VIDEOS_TOO, "exact"),
        ("qwen3_5_moe", "qwen_vl:QwenVLAdapter", "Qwen/Qwen3.5-35B-A3B", VIDEOS_TOO, "exact"),
        ("glm4v", "glm_v:GlmVAdapter", "zai-org/GLM-4.1V-9B-Thinking", WITHOUT_VIDEOS, "exact"),
        ("glm4v_moe", "glm_v:GlmVAdapter", "zai-org/GLM-4.5V", WITHOUT_VIDEOS, "exact"),
        ("glm46v", "glm_v:GlmVAdapter", "zai-org/GLM-4.6V", WITHOUT_VIDEOS, "exact"),
        ("glm_ocr", "glm_v:GlmVAdapter", "zai-org/GLM-OCR", WITHOUT_VIDEOS, "exact"),
        ("paddleocr_vl", "paddleocr_vl:PaddleOCRVLAdapter", "PaddlePaddle/PaddleOCR-VL", REAL, "exact"),
        (
            "ernie4_5_vl_moe",
            "ernie4_5_vl_moe:Ernie45VLMoeAdapter",
            "baidu/ERNIE-4.5-VL-28B-A3B-PT",
            WITHOUT_VIDEOS,
            "exact",
        ),
        (
            "kimi_k25",
            "kimi_k25:KimiK25Adapter",
            "moonshotai/Kimi-K2.6",
            "random weights; pixels as tensors, the processor needs torchvision; videos not",
            "exact",
        ),
        (
            "mistral3",
            "mistral3:Mistral3Adapter",
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
            REAL,
            "exact; a break after each row of an image stays and is not counted",
        ),
        ("exaone4_5", "native_more:Exaone45Adapter", "LGAI-EXAONE/EXAONE-4.5-33B", WITHOUT_VIDEOS, CLOSED),
        ("glm5_next", "native_more:Glm5NextAdapter", "zai-org/GLM-5.3-Flash", WITHOUT_VIDEOS, "exact"),
        (
            "cohere_compass",
            "native_more:QwenKinAdapter",
            "CohereLabs/North-Micro-Vision-Instruct",
            WITHOUT_VIDEOS,
            "exact",
        ),
        ("lighton_ocr", "native_more:LightOnOcrAdapter", "lightonai/LightOnOCR-1B-1025", WITHOUT_VIDEOS, "exact"),
        ("gemma4", "gemma4:Gemma4Adapter", "google/gemma-4-E2B-it", WITHOUT_VIDEOS, "exact"),
        ("gemma4_unified", "gemma4:Gemma4UnifiedAdapter", "google/gemma-4-12B-it", STAND_IN, "exact"),
        ("lfm3_vl", "native_more:Lfm3VLAdapter", "LiquidAI/LFM3-VL-2B", WITHOUT_VIDEOS, "exact"),
        ("minimax_m3_vl", "native_more:MiniMaxM3VLAdapter", "MiniMaxAI/MiniMax-M3", STAND_IN, CLOSED),
        ("video_llama_3", "native_more:VideoLlama3Adapter", "lkhl/VideoLLaMA3-2B-Image-HF", WITHOUT_VIDEOS, "exact"),
        (
            "hyperclovax_vision_v2",
            "native_more:HyperClovaXVisionAdapter",
            "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
            WITHOUT_VIDEOS,
            CLOSED,
        ),
        ("cosmos3_omni", "native_more:QwenKinAdapter", "nvidia/Cosmos3-Nano", WITHOUT_VIDEOS, "exact"),
        ("cosmos3_edge", "native_more:Cosmos3EdgeAdapter", "nvidia/Cosmos3-Edge", WITHOUT_VIDEOS, "exact"),
        ("muse_glimmer", "native_more:MuseGlimmerAdapter", "meta-models/Muse-Glimmer-30B", STAND_IN, "exact"),
        ("qwen4_exp", "native_more:QwenKinAdapter", "Qwen/Qwen4-Exp", WITHOUT_VIDEOS, "exact"),
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
        ("dots3_note", "native_more:Dots3NoteAdapter", "dots-studio/dots3-note-prev", WITHOUT_VIDEOS, "exact"),
    )
)

NATIVE_UNSUPPORTED = {
    "hunyuan_vl": "newlines and bounds stand among its placeholders, and a prompt's positions depend on the images of others",
    "hy_v4_vl": "each row of an image's tokens ends with a newline among the placeholders, which no guide knows yet",
    "inkling": "its calls do not tell how the patches of an image lie",
    "qwen2_5_omni": "it is several models; compress its thinker, model.thinker, which reads images",
    "qwen3_omni_moe": "it is several models; compress its thinker, model.thinker, which reads images",
}
"""Families whose images keep their resolution, or seem to, and do not work with this package, with the reason."""
