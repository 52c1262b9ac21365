"""vLLM learns our models: loaded through the entry point `vllm.general_plugins`, in each of its processes."""


def register() -> None:
    """Make transformers know our configuration, model and processor, as vLLM's Transformers backend asks it for them.

    The backend looks a model's class up in transformers itself, so it is put there. It runs a family's modelling code
    with attention, linear layers and experts replaced by its own: a decoder must pass keyword arguments on to its
    attention (StableLM's does not) and have experts without biases (Phi's have them).
    """
    import transformers

    import moe_llava.data  # noqa: F401 - registers the processor
    from moe_llava.model import MoeLlavaForConditionalGeneration

    setattr(transformers, MoeLlavaForConditionalGeneration.__name__, MoeLlavaForConditionalGeneration)
