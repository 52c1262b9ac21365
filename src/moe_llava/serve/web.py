"""The page at `/`: a conversation with pictures, and beside it which experts answered."""

import hmac
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Default
from PIL import Image

from moe_llava.generate.engine import Decoding
from moe_llava.serve.picture import CSS, as_seen, legend, loads, overlay
from moe_llava.serve.routes import ImageRoutes, TokenRoute
from moe_llava.serve.scheduler import BusyError, ClosingError
from moe_llava.serve.service import Service, Turn

EXAMPLES = ["What is in the image?", "What color is the shape?", "Is there a circle?"]
Said = list[dict[str, Any]]


class Routes:
    """What the panel shows: the routes of the last answer, and the pictures it was about, as the model saw them."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures
        self.images: tuple[ImageRoutes, ...] = ()
        self.tokens: list[TokenRoute] = []


class Page:
    """The handlers of the page's events."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.layers = service.scheduler.layers
        self._num_experts = getattr(service.engine.model.config.text_config, "num_experts", 0)

    def take(self, box: dict[str, Any] | None, said: Said) -> tuple[dict[str, Any], Said]:
        """The question and its pictures join the conversation."""
        text, files = (box or {}).get("text", "").strip(), (box or {}).get("files", [])
        if not text and not files:
            raise gr.Error("Write a question first.")
        new: Said = [{"role": "user", "content": {"path": file}} for file in files]
        return {"text": "", "files": []}, [*said, *new, {"role": "user", "content": text or "What is in the image?"}]

    async def answer(
        self, said: Said, temperature: float, length: int, layer: int
    ) -> AsyncIterator[tuple[Said, Routes | None, Any, Any]]:
        """The conversation, loads and pictures, while the answer grows. Being cancelled gives its place free."""
        if not said or said[-1]["role"] != "user":
            raise gr.Error("Ask something first.")
        try:
            prompt = await self._service.prompt(_turns(said))
            room = min(int(length), self._service.new_tokens(prompt, None))
            answers = self._service.ask(prompt, [Decoding(room, float(temperature))], routing=bool(self.layers))
        except BusyError:
            raise gr.Error("The queue is full; try again in a moment.") from None
        except ClosingError:
            raise gr.Error("The server is stopping.") from None
        except ValueError as error:
            gr.Warning(str(error))
            # Out of the conversation with it, or every later question would be refused too.
            yield _without_last_question(said), None, *self.panel(None, layer)
            return
        routes = Routes([as_seen(self._service.engine.processor, image) for image in prompt.images])  # type: ignore[arg-type]
        text = ""
        with answers:
            async for _, piece in answers:
                if piece.error is not None:
                    raise gr.Error("The model failed on this question.")
                text += piece.text
                routes.images = piece.images or routes.images
                routes.tokens += piece.routes
                # The pictures are sent once: they are large, and do not change while the answer grows.
                pictures = self.pictures(routes, layer) if piece.images is not None else gr.skip()
                yield [*said, {"role": "assistant", "content": text or "…"}], routes, self.loads(routes), pictures

    def panel(self, routes: Routes | None, layer: int) -> tuple[str, str]:
        """Loads and pictures of an answer, or of none."""
        return self.loads(routes), self.pictures(routes, layer)

    def loads(self, routes: Routes | None) -> str:
        """How many tokens and patches each expert got."""
        if not self.layers:
            return "<p>The model is dense: one network answers everything.</p>"
        if routes is None:
            return "<p>Ask about a picture to see which experts answer.</p>"
        patches = [patch for image in routes.images for patch in image.experts]
        return (
            legend(self._num_experts)
            + loads("Tokens of the answer", [token.experts for token in routes.tokens], self.layers, self._num_experts)
            + loads("Patches of the pictures", patches, self.layers, self._num_experts)
        )

    def pictures(self, routes: Routes | None, layer: int) -> str:
        """The pictures, each patch in the colour of its expert in the sparse layer next to `layer`."""
        if routes is None or not routes.images:
            return ""
        at = min(range(len(self.layers)), key=lambda place: abs(self.layers[place] - layer))
        seen = zip(routes.pictures, routes.images, strict=True)
        return f"<h4>Who saw what, in layer {self.layers[at]}</h4>" + "".join(overlay(*one, at) for one in seen)

    @staticmethod
    def retry(said: Said) -> Said:
        """The conversation without its last answer."""
        return said[:-1] if said and said[-1]["role"] == "assistant" else said


def _without_last_question(said: Said) -> Said:
    answers = [at for at, message in enumerate(said) if message["role"] == "assistant"]
    return said[: answers[-1] + 1] if answers else []


def _turns(said: Said) -> list[Turn]:
    """What Gradio's chat holds -> turns: pictures stand before the text of their message."""
    turns: list[Turn] = []
    files: list[bytes] = []
    for message in said:
        text = ""
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        for part in parts:
            if isinstance(part, str):
                text += part
            elif "text" in part:
                text += part["text"]
            else:
                files.append(Path(part.get("path") or part["file"]["path"]).read_bytes())
        if text:
            turns.append(Turn(message["role"], "<image>\n" * len(files) + text, tuple(files)))
            files = []
    return turns


def build_page(service: Service) -> gr.Blocks:
    page = Page(service)
    # What was uploaded is deleted after a day; looked for each hour.
    with gr.Blocks(title="moe-llava", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(f"### {service.name}: ask about pictures, see which experts answer")
        routes = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chat = gr.Chatbot(
                    label="Conversation", height=420, elem_id="chat", render_markdown=False, buttons=["copy"],
                )  # fmt: skip
                box = gr.MultimodalTextbox(
                    label="Question", placeholder="Ask; paste or add pictures", file_count="multiple",
                    file_types=["image"], sources=["upload"], elem_id="box", show_label=False,
                )  # fmt: skip
                with gr.Row():
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                    again = gr.Button("Retry", elem_id="retry", min_width=80)
                    clear = gr.Button("Clear", elem_id="clear", min_width=80)
                gr.Examples([[{"text": text, "files": []}] for text in EXAMPLES], box, label="Examples")
                with gr.Accordion("Decoding", open=False):
                    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: the likeliest token)")
                    length = gr.Slider(1, min(512, service.context), min(512, service.context), step=1, label="Length")
            with gr.Column(scale=2, min_width=320):
                counts = gr.HTML(page.loads(None), elem_id="loads")
                layers = page.layers or [0]
                gap = math.gcd(*(layer - layers[0] for layer in layers)) or 1
                last = max(layers[-1], layers[0] + 1)  # Gradio takes no slider without a way to go
                layer = gr.Slider(
                    layers[0], last, layers[0], step=gap, label="Sparse layer shown on the pictures",
                    elem_id="layer", visible=len(layers) > 1, buttons=[],
                )  # fmt: skip
                pictures = gr.HTML(elem_id="pictures")
        seen = [chat, routes, counts, pictures]
        asked = box.submit(page.take, [box, chat], [box, chat], queue=False)
        answering = asked.success(page.answer, [chat, temperature, length, layer], seen)
        retrying = again.click(page.retry, chat, chat, queue=False).then(
            page.answer, [chat, temperature, length, layer], seen
        )
        stop.click(None, cancels=[answering, retrying])
        # First cancelled, then cleared: what an answer sends last must not arrive in the empty conversation.
        stopped = clear.click(None, cancels=[answering, retrying])
        stopped.then(lambda: ([], None, *page.panel(None, 0)), None, seen, queue=False)
        layer.change(page.pictures, [routes, layer], pictures, queue=False, show_progress="hidden")
    return blocks


def mount_page(app: FastAPI, service: Service, *, api_key: str | None, max_file_bytes: int) -> None:
    """Put the page at `/`. With a key, it asks for it as the password of any name."""

    def knows(_: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), (api_key or "").encode())

    blocks = build_page(service)
    blocks.queue(default_concurrency_limit=service.scheduler.max_rows, api_open=False)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=knows if api_key else None,
        auth_message="Any name; the password is the server's key.",
        max_file_size=max_file_bytes,
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
        ssr_mode=False,
        footer_links=[],
    )
