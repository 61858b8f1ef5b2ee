from pathlib import Path

from flashslm.config import ScalingConfig
from flashslm.models.hybrid import HybridLM
from flashslm.scaling.family import FamilyTraining, Member, family_of, holdout_of, members
from flashslm.scaling.points import evaluation_steps
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import FromArchitecture
from flashslm.training.trainer import train
from tests.unit.training import tiny


def test_points_are_evenly_spaced_in_log_tokens() -> None:
    assert evaluation_steps(1000, 2) == (250, 1000)
    assert evaluation_steps(1024, 5) == (256, 362, 512, 724, 1024)
    assert evaluation_steps(2, 4) == (1, 2)  # a run too short for more


def test_family_trains_the_grid_and_the_held_out_model(tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path)
    config = ScalingConfig(
        block="AF",
        depths=(1, 2),
        widths=(8, 16),
        holdout_depth=3,
        holdout_width=24,
        checkpoints=2,
        steps=4,
        batch_size=4,
        sequence_length=16,
        learning_rate=1e-2,
    )
    manifest, fetch = tiny.manifest(vocab_size=tiny.VOCAB), tiny.fetching(dataset)
    training = FamilyTraining(config, tiny.SIZES, manifest, seed=0, device="cpu", threads=1)
    trained = {member: training.train(member, fetch) for member in reversed(members(config))}
    family = family_of(config, trained)
    grid = [(depth, width, steps * 64) for depth in (1, 2) for width in (8, 16) for steps in (1, 4)]
    assert [(p.depth, p.width, p.tokens) for p in family.points] == grid
    assert [(p.depth, p.width, p.tokens) for p in family.holdout] == [(3, 24, 64), (3, 24, 256)]
    architecture = tiny.architecture("AFAF", width=16)
    assert family.points[-1].parameters == sum(p.numel() for p in HybridLM.build(architecture).parameters())
    spec = tiny.spec(proxy_training(config, 1, decay=False), start=FromArchitecture(architecture=architecture))
    alone = train(spec, HybridLM.build(architecture), fetch)
    assert family.points[-1].loss_nats == alone.validation_loss_nats
    held_out = trained[holdout_of(config)]
    assert held_out.summary.startswith("depth 3, width 24") and held_out.kernels


def test_models_begin_with_the_outputs_that_the_recipe_says(tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path)
    config = ScalingConfig(block="AF", checkpoints=2, steps=4, batch_size=4, sequence_length=16)
    manifest, fetch = tiny.manifest(vocab_size=tiny.VOCAB), tiny.fetching(dataset)
    sizes = tiny.SIZES.model_copy(update={"output_init": "zero"})
    found = FamilyTraining(config, sizes, manifest, seed=0, device="cpu", threads=1).train(Member(1, 16), fetch)
    spec, model = tiny.spec(proxy_training(config, 1, decay=False)), tiny.architecture("AF")
    alone = train(spec, HybridLM.build(model, output_init="zero"), fetch)
    assert found.points[-1].loss_nats == alone.validation_loss_nats
    assert found.points[-1].loss_nats != train(spec, HybridLM.build(model), fetch).validation_loss_nats
