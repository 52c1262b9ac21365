"""Real material for the demonstration, made from installed packages: `build_demo(folder)`.

```
build.py      the order of the work
├── easy_vqa.py   shapes and questions
├── emoji.py      drawings and questions
│   ├── concepts.py   what there is to draw; what is held out
│   ├── words.py      what it is called
│   └── drawings.py   what it looks like <- npm.py
├── emoji_pope.py is what a picture does not show denied? A POPE-shaped benchmark
├── texts.py      words without pictures; captions
└── tower.py      pre-trained vision weights
files.py      writing, and finding packages
```
"""

from moe_llava.data.demo.build import DEFAULT_STYLES, DemoSummary, build_demo

__all__ = ["DEFAULT_STYLES", "DemoSummary", "build_demo"]
