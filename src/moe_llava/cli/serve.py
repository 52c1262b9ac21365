"""The verb that serves."""

import argparse
import os

from moe_llava.cli.verbs import Verbs, console, errors


def add_to(verbs: Verbs) -> None:
    command = verbs.add("serve", run_serve, "Serve a model: OpenAI's API, and a chat page with --ui.")
    command.add_argument("model", help="folder of a checkpoint")
    command.add_argument("--ui", action="store_true", help="a page at / that shows which experts answered")
    command.add_argument("--host", default="127.0.0.1", help="where to listen; by default this machine alone")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--api-key", help="asked of every client; by default MOE_LLAVA_API_KEY, if that is set")
    command.add_argument("--model-name", help="its name in the API; by default the folder's")
    command.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    command.add_argument("--quantize", choices=("int8", "int4"), help="hold the weights in 8 or 4 bits")
    command.add_argument("--allow-remote-images", action="store_true", help="read http(s) images of public addresses")
    command.add_argument("--max-batch", type=int, default=32, help="most answers in progress")
    command.add_argument("--max-queue", type=int, default=64, help="most answers that wait; more get 429")
    command.add_argument("--max-body-mb", type=int, default=20, help="largest request")


def run_serve(options: argparse.Namespace) -> int | None:
    try:
        from moe_llava.serve.launch import Options, launch
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'moe-llava[serve]'.") from error
    key = options.api_key or os.environ.get("MOE_LLAVA_API_KEY") or None
    launch(
        Options(
            model=options.model,
            ui=options.ui,
            host=options.host,
            port=options.port,
            api_key=key,
            model_name=options.model_name,
            device=options.device,
            quantize=options.quantize,
            allow_remote_images=options.allow_remote_images,
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            max_body_bytes=options.max_body_mb * 2**20,
        ),
        say=console.print,
        warn=lambda text: errors.print(f"Warning: {text}", style="yellow", markup=False, highlight=False),
    )
    return None
