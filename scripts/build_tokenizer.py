# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Make mini's tokenizer from the captions of the procedural source: python scripts/build_tokenizer.py.

Byte-level pair encoding: every word of the captions becomes one token, any other text falls apart into pieces.
"""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from uso_jax import mini
from uso_jax.data.drawings.source import ProceduralSource

CAPTIONS = 20_000
VOCABULARY = 1024


def main() -> None:
    """Train the tokenizer and write it into the package."""
    captions = [
        ProceduralSource(split=split, size=8, tasks={task: 1.0}, style_words=1.0, place_words=0.5)[i].prompt
        for split in ("train", "heldout_subjects", "heldout_families")
        for task in ("text", "subject")
        for i in range(CAPTIONS // 6)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(mini.TOKENIZER))
    print(f"{mini.TOKENIZER}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
