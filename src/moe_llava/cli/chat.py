"""The verb that talks."""

import argparse

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("chat", run_chat, "Ask a model; without --prompt, a conversation.")
    command.add_argument("model", help="folder of a checkpoint, or hub id")
    command.add_argument("--image", action="append", default=[], help="a picture; several are allowed")
    command.add_argument("--prompt", help="ask once and leave")
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument("--quantize", choices=("int8", "int4"), help="hold the weights in 8 or 4 bits")
    command.add_argument("--temperature", type=float, default=0.0)


def run_chat(options: argparse.Namespace) -> int | None:
    from moe_llava.assistant import load
    from moe_llava.chat import converse
    from moe_llava.generate.engine import Decoding

    assistant = load(options.model, quantize=options.quantize, pack=True)
    decoding = Decoding(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    if options.prompt is None:
        converse(assistant, options.image, decoding, console)
        return None
    for piece in assistant.stream(options.prompt, options.image, decoding=decoding):
        console.print(piece, end="", markup=False, highlight=False)
    console.print()
    return None
