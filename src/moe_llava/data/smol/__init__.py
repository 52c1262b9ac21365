"""Real material for a small real model, made from installed packages: `build_smol(folder)`.

```
build.py         the order of the work; emoji, words and shapes of `data.demo` are the ground it stands on
├── facts.py        what a picture's thing is: keywords, a dictionary's definition, its colours
│   └── dictionary.py  WordNet's nouns, the sense that fits the kind of thing
├── pictures.py     drawings, and the same moved, tinted and redrawn for training
├── questions.py    pictures and facts -> captions, conversations, tests
├── speech.py       questions without pictures, answered by the language model as it was
└── decoder.py      SmolLM2 out of its GGUF file -> an ordinary checkpoint
```
"""

from moe_llava.data.smol.build import SmolSummary, build_smol

__all__ = ["SmolSummary", "build_smol"]
