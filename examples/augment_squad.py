"""Write a SQuAD file with augmented copies of its paragraphs, answers kept.

    python examples/augment_squad.py --squad_path dataset.json \
        --output_path augmented_dataset.json --multiplication_factor 20

The options are those of Haystack v1's script of this name, with some more. `hf-distill augment`
does this and also augments other data; this is the place to start when your script does something
of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from transformers import HfArgumentParser

from hf_distill.augmentation import SquadAugmentationOptions, augment_squad


@dataclass(kw_only=True)
class Arguments(SquadAugmentationOptions):
    """The options of ``augment_squad``, and the files."""

    squad_path: str = field(metadata={"help": "A SQuAD v1.1 or v2.0 file, .json or .json.gz."})
    output_path: str = field(metadata={"help": "The file to write, .json or .json.gz."})


def main() -> None:
    """Augment the file that the command line names."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    options = asdict(arguments)
    options["max_words"] = options["max_words"] or None
    summary = augment_squad(**options)
    if summary is not None:
        print(summary)


if __name__ == "__main__":
    main()
