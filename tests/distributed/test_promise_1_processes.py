"""Promise 1 of the design over two processes, under `accelerate launch`, as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zoo import PAIRS

STEP = Path(__file__).with_name("step.py")
ONE_OF_EACH = [f"{task}/{architecture}" for task, architecture in dict(PAIRS).items()]
pytestmark = pytest.mark.slow

Results = dict[str, dict]


def run(directory: Path, processes: int, batch: int, accumulation: int) -> list[Results]:
    """What each process found, by task."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        launch += f"--num_processes {processes} --mixed_precision no --dynamo_backend no".split()
        launch += ["--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, str(STEP), str(directory), str(batch), str(accumulation), "0.3", *ONE_OF_EACH],
        check=True,
        env=environment,
        timeout=600,
    )
    return [json.loads((directory / f"rank{r}.json").read_text()) for r in range(processes)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process, all 16 rows at once."""
    return run(tmp_path_factory.mktemp("1x16"), 1, 16, 1)[0]


@pytest.fixture(scope="module", params=[(8, 1), (4, 2)], ids=["2 x 8", "2 x 4 x 2"])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Results]:
    """Two processes, in one launch for all tasks."""
    batch, accumulation = request.param
    return run(tmp_path_factory.mktemp(f"2x{batch}x{accumulation}"), 2, batch, accumulation)


@pytest.mark.parametrize("pair", ONE_OF_EACH)
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(
    pair: str, whole: Results, ranks: list[Results]
) -> None:
    one, two = whole[pair], [rank[pair] for rank in ranks]
    assert [rank["processes"] for rank in two] == [2, 2]
    for name in ("loss", "loss_task", "loss_prediction"):
        assert two[0][name] == pytest.approx(one[name], rel=1e-5), name
    for rank in two:
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert rank["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-5)
        assert rank["teacher_class"] == one["teacher_class"]  # not wrapped in DDP
    assert two[0]["weights"] == two[1]["weights"]
