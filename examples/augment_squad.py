"""Write a SQuAD file with augmented copies of its paragraphs, answers kept.

    python examples/augment_squad.py --squad_path dataset.json \
        --output_path augmented_dataset.json --multiplication_factor 20

The options are those of Haystack v1's script of this name, with some more. `hf-distill augment`
does this and also augments other data; this is the place to start when your script does something
of its own.
"""

from __future__ import annotations

from dataclasses import asdict

from transformers import HfArgumentParser

from hf_distill.augmentation import augment_squad
from hf_distill.cli.augment_arguments import SquadAugmentationArguments


def main() -> None:
    """Augment the file that the command line names."""
    (arguments,) = HfArgumentParser(SquadAugmentationArguments).parse_args_into_dataclasses()
    options = asdict(arguments)
    options["max_words"] = options["max_words"] or None
    summary = augment_squad(**options)
    if summary is not None:
        print(summary)


if __name__ == "__main__":
    main()
