"""The published models: where they are, and what their authors measured.

Figures are those of the MoE-LLaVA repository's README, which takes LLaVA-1.5's from its paper (2310.03744).
"""

from dataclasses import dataclass

BENCHMARKS = ("VQAv2", "GQA", "VizWiz", "SQA-IMG", "TextVQA", "POPE", "MME", "MMBench", "MM-Vet")


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Args:
        name: short name.
        stage: `III` sparse, `II` dense, `I` projector alone, `LLaVA` a LLaVA-1.5.
        hugging_face, modelscope: ids; ModelScope has the stage III models only.
        activated_billions: activated parameters of the language model, as published; `None` where nothing was.
        scores: in the order of `BENCHMARKS`; empty where none were published.
    """

    name: str
    stage: str
    hugging_face: str
    modelscope: str | None = None
    activated_billions: float | None = None
    scores: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "stage": self.stage,
            "hugging_face": self.hugging_face,
            "modelscope": self.modelscope,
            "activated_billions": self.activated_billions,
            "scores": dict(zip(BENCHMARKS, self.scores, strict=True)) if self.scores else {},
        }


# Scores in the order of `BENCHMARKS`.
_SCORES = {
    "StableLM-1.6B x4": (76.7, 60.3, 36.2, 62.6, 50.1, 85.7, 1318.1, 60.2, 26.9),
    "Qwen-1.8B x4": (76.2, 61.5, 32.6, 63.1, 48.0, 87.0, 1291.6, 59.6, 25.3),
    "Phi2-2.7B x4": (77.6, 61.4, 43.9, 68.5, 51.4, 86.3, 1423.0, 65.2, 34.3),
    "StableLM-1.6B x4 384": (78.6, 61.5, 40.5, 63.9, 54.3, 85.9, 1335.7, 63.3, 32.3),
    "Phi2-2.7B x4 384": (79.9, 62.6, 43.7, 70.3, 57.0, 85.7, 1431.3, 68.0, 35.9),
    "LLaVA-1.5-7B": (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 30.5),
    "LLaVA-1.5-13B": (80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 1531.3, 67.7, 35.4),
}


def _sparse(name: str, model: str, activated: float) -> Published:
    return Published(name, "III", f"LanguageBind/{model}", f"PKU-YuanLab/{model}", activated, _SCORES[name])


def _earlier(name: str, stage: str, model: str) -> Published:
    return Published(name, stage, f"LanguageBind/{model}")


def _llava(name: str, hugging_face: str, activated: float) -> Published:
    return Published(name, "LLaVA", hugging_face, None, activated, _SCORES[name])


ZOO = (
    _sparse("StableLM-1.6B x4", "MoE-LLaVA-StableLM-1.6B-4e", 2.0),
    _sparse("Qwen-1.8B x4", "MoE-LLaVA-Qwen-1.8B-4e", 2.2),
    _sparse("Phi2-2.7B x4", "MoE-LLaVA-Phi2-2.7B-4e", 3.6),
    _sparse("StableLM-1.6B x4 384", "MoE-LLaVA-StableLM-1.6B-4e-384", 2.0),
    _sparse("Phi2-2.7B x4 384", "MoE-LLaVA-Phi2-2.7B-4e-384", 3.6),
    _llava("LLaVA-1.5-7B", "liuhaotian/llava-v1.5-7b", 7.0),
    _llava("LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", 7.0),
    _llava("LLaVA-1.5-13B", "liuhaotian/llava-v1.5-13b", 13.0),
    _llava("LLaVA-1.5-13B", "llava-hf/llava-1.5-13b-hf", 13.0),
    _earlier("StableLM-1.6B", "II", "MoE-LLaVA-StableLM-Stage2"),
    _earlier("StableLM-1.6B 384", "II", "MoE-LLaVA-StableLM-Stage2-384"),
    _earlier("Qwen-1.8B", "II", "MoE-LLaVA-Qwen-Stage2"),
    _earlier("Phi2-2.7B", "II", "MoE-LLaVA-Phi2-Stage2"),
    _earlier("Phi2-2.7B 384", "II", "MoE-LLaVA-Phi2-Stage2-384"),
    _earlier("StableLM-1.6B", "I", "MoE-LLaVA-StableLM-Pretrain"),
    _earlier("StableLM-1.6B 384", "I", "MoE-LLaVA-StableLM-384-Pretrain"),
    _earlier("Qwen-1.8B", "I", "MoE-LLaVA-Qwen-Pretrain"),
    _earlier("Phi2-2.7B", "I", "MoE-LLaVA-Phi2-Pretrain"),
    _earlier("Phi2-2.7B 384", "I", "MoE-LLaVA-Phi2-384-Pretrain"),
)
