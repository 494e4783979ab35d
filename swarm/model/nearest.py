"""The nearest family that can be cut, for those whose model cannot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kin:
    """words: what names of classes of its kin contain, lower case; told: what people call it; kind: its class."""

    words: tuple[str, ...]
    told: str
    kind: str


FAMILIES = (
    Kin(("recurrentgemma", "gemma"), "Gemma 3", "Gemma3ForCausalLM"),
    Kin(("deepseek",), "DeepSeek V3.2", "DeepseekV32ForCausalLM"),
    Kin(("qwen",), "Qwen3.5", "Qwen3_5ForCausalLM"),
    Kin(("zamba", "zaya", "recurrent", "griffin"), "Falcon-H1", "FalconH1ForCausalLM"),
    Kin(("rwkv", "xlstm", "mamba"), "Mamba-2", "Mamba2ForCausalLM"),
    Kin(("hyv", "hunyuan"), "Hunyuan V3", "HYV3ForCausalLM"),
    Kin(("cpm",), "MiniCPM3", "MiniCPM3ForCausalLM"),
    Kin(("glm",), "GLM-5", "GlmMoeDsaForCausalLM"),
    Kin(("mistral", "mixtral", "pixtral", "voxtral"), "Mistral", "MistralForCausalLM"),
    Kin(("granite",), "Granite 4", "GraniteMoeHybridForCausalLM"),
    Kin(("phi",), "Phi-3", "Phi3ForCausalLM"),
    Kin(("olmo",), "OLMo 3", "Olmo3ForCausalLM"),
    Kin(("falcon",), "Falcon-H1", "FalconH1ForCausalLM"),
    Kin(("minimax",), "MiniMax M2", "MiniMaxM2ForCausalLM"),
    Kin(("nemotron",), "Nemotron-H", "NemotronHForCausalLM"),
    Kin(("lfm",), "LFM2", "Lfm2ForCausalLM"),
    Kin(("kimi",), "Kimi Linear", "KimiLinearForCausalLM"),
    Kin(("cohere", "command"), "Command R7B (Cohere 2)", "Cohere2ForCausalLM"),
    Kin(("dots",), "dots.llm1", "Dots1ForCausalLM"),
    Kin(("ernie",), "ERNIE 4.5", "Ernie4_5ForCausalLM"),
    Kin(("exaone",), "EXAONE 4", "Exaone4ForCausalLM"),
    Kin(("longcat",), "LongCat Flash", "LongcatFlashForCausalLM"),
    Kin(("prophet", "marian", "pegasus"), "BART", "BartForCausalLM"),
    Kin(("xlm", "bert"), "XLM-RoBERTa", "XLMRobertaForCausalLM"),
    Kin(("xlnet", "reformer", "gpt"), "GPT-2", "GPT2LMHeadModel"),
    Kin(("moe", "expert"), "Qwen3-MoE", "Qwen3MoeForCausalLM"),
)
"""The first one wins whose word stands in a name."""

ANY = Kin((), "Llama", "LlamaForCausalLM")


def nearest(name: str) -> Kin:
    """For the name of a class or a model type: a family of its kin that is exact however it is cut, else Llama."""
    plain = name.lower().replace("_", "").replace("-", "").replace("forcausallm", "")
    return next((one for one in FAMILIES if any(word in plain for word in one.words)), ANY)
