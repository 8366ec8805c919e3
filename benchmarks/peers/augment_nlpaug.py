"""nlpaug on the contexts of a SQuAD file: one version of each; answers are left as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nlpaug.augmenter.word import ContextualWordEmbsAug


def main() -> None:
    """Write the file with its contexts replaced."""
    source, output, model = sys.argv[1:]
    content = json.loads(Path(source).read_text(encoding="utf-8"))
    paragraphs = [part for article in content["data"] for part in article["paragraphs"]]
    augmenter = ContextualWordEmbsAug(
        model_path=model, model_type="bert", aug_p=0.4, top_k=15, batch_size=16, device="cpu"
    )
    for paragraph in paragraphs:
        (paragraph["context"],) = augmenter.augment(paragraph["context"])
    Path(output).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
