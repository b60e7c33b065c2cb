import pytest
import torch

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.training.checkpoint import (
    RunState,
    RunTensors,
    read_newest_sound,
    read_run,
    restore_run,
    save_run,
)
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity, check_identity, fingerprint
from sat_vg.backbone_finetuning.utils.errors import CheckpointError

CONFIG = FinetuneConfig()


def small_tensors():
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return RunTensors(network, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def identity(config=CONFIG, data="d"):
    return RunIdentity(config.to_dict(), data, {})


def test_round_trip_of_every_number_and_tensor(tmp_path):
    saved, state = small_tensors(), RunState(phase=1, epoch=7, step=70, best_value=0.5, plateau_factor=0.1)
    path = save_run(tmp_path, state, saved, identity(), keep=2)
    fresh = small_tensors()
    assert restore_run(read_run(path), fresh) == state
    assert torch.equal(fresh.network.weight, saved.network.weight)
    for mine, theirs in zip(fresh.optimizer.state.values(), saved.optimizer.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_only_the_newest_are_kept_and_last_is_the_newest(tmp_path):
    for step in (10, 20, 30, 40):
        save_run(tmp_path, RunState(step=step), small_tensors(), identity(), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "step_00000030.pt", "step_00000040.pt"]
    assert read_run(tmp_path / "last.pt")["state"]["step"] == 40


def test_a_resume_with_other_settings_names_them_all(tmp_path):
    path = save_run(tmp_path, RunState(), small_tensors(), identity(), keep=1)
    other = CONFIG.replace(learning_rate=0.5, seed=3, num_workers=4, log_every=77)
    with pytest.raises(CheckpointError) as caught:
        check_identity(read_run(path), identity(other, "e"), path)
    message = str(caught.value)
    for part in ("learning_rate: the run has 0.0003, now 0.5", "seed", "the images", "--resume never"):
        assert part in message
    assert "num_workers" not in message
    assert "log_every" not in message
    same = CONFIG.replace(num_workers=4, log_every=77, device="cpu")
    check_identity(read_run(path), identity(same), path)
    without = read_run(path)
    del without["config"]["cutmix_alpha"]  # as if written before the field came
    check_identity(without, identity(same), path)


def test_the_fingerprint_sees_names_labels_and_classes():
    base = fingerprint([("a/1.jpg", 0), ("b/2.jpg", 1)], ["a", "b"])
    assert base == fingerprint([("a/1.jpg", 0), ("b/2.jpg", 1)], ["a", "b"])
    for other in (
        fingerprint([("a/1.jpg", 1), ("b/2.jpg", 1)], ["a", "b"]),
        fingerprint([("b/2.jpg", 1), ("a/1.jpg", 0)], ["a", "b"]),
        fingerprint([("a/1.jpg", 0), ("b/2.jpg", 1)], ["a", "c"]),
    ):
        assert other != base


def test_files_that_are_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        read_run(tmp_path / "none.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match=r"no last\.pt"):
        read_run(tmp_path / "plain.pt")
    path = save_run(tmp_path, RunState(), small_tensors(), identity(), keep=1)
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"cut short|no file of plain"):
            read_run(path)
    for schema, remedy in (
        (99, "upgrade to that"),
        (0, "--resume never"),
        ("x", "--resume never"),
        (None, "use that"),
    ):
        torch.save({"format": "sat_vg.run", "schema": schema, "version": "9.9"}, tmp_path / "new.pt")
        with pytest.raises(CheckpointError, match=rf"schema {schema!r}.*9\.9.*{remedy}"):
            read_run(tmp_path / "new.pt")
    torch.save({"format": "sat_vg.run", "schema": 1, "network": {}, "state": 3}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="lacks state, optimizer"):
        read_run(tmp_path / "part.pt")


def test_a_state_of_other_types_is_refused(tmp_path):
    path = save_run(tmp_path, RunState(), small_tensors(), identity(), keep=1)
    for name, value in (("step", "many"), ("recent_losses", 3), ("best_value", [])):
        content = read_run(path)
        content["state"][name] = value
        with pytest.raises(CheckpointError, match=f"the checkpoint's {name} is "):
            restore_run(content, small_tensors())
    content = read_run(path)
    del content["state"]["recent_losses"]  # as written before the field came
    assert restore_run(content, small_tensors()) == RunState()


def test_the_newest_sound_state_is_found(tmp_path, capsys):
    assert read_newest_sound(tmp_path) is None
    for step in (10, 20, 30):
        save_run(tmp_path, RunState(step=step), small_tensors(), identity(), keep=3)

    def found():
        path, content = read_newest_sound(tmp_path)
        return path.name, content["state"]["step"]

    assert found() == ("last.pt", 30)
    assert capsys.readouterr().out == ""
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").unlink()
    assert found() == ("step_00000030.pt", 30)  # killed before it got its other name
    (tmp_path / "last.pt").write_bytes(whole[:-5])  # a copy that was cut, not the same file
    assert found() == ("step_00000030.pt", 30)
    assert "last.pt' cannot be read" in capsys.readouterr().out
    with (tmp_path / "step_00000030.pt").open("r+b") as file:
        file.truncate(100)
    assert found() == ("step_00000020.pt", 20)
    assert "going on with the state before" in capsys.readouterr().out
    for path in tmp_path.glob("step_*.pt"):
        path.write_bytes(b"")
    torch.save({"format": "sat_vg.run", "schema": 2, "version": "9.9"}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="schema 2"):  # not a damage to be passed over
        read_newest_sound(tmp_path)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(CheckpointError, match="no state of the run can be read") as caught:
        read_newest_sound(tmp_path)
    assert "--resume never" in str(caught.value)


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    torch.save({"format": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        read_run(tmp_path / "evil.pt")
    assert not (tmp_path / "hacked").exists()


def note(state, *values, losses=None, end=True, **options):
    """The verdicts on epochs of these values of a metric of which the highest is the best."""
    settings = {"higher_is_better": True, "min_delta": 0.0, **options}
    verdicts = []
    for place, value in enumerate(values):
        verdicts.append(state.note_validation(value, losses[place] if losses else 1.0, **settings))
        state.reduce_on_plateau(patience=2, gamma=0.1)
        state.end_epoch()
    return verdicts


def test_history_of_best_early_stopping_and_plateau():
    state = RunState()
    assert note(state, 0.5, 0.6, 0.6, 0.6, 0.7) == [True, True, False, False, True]
    assert state.plateau_factor == pytest.approx(0.1)
    assert (state.best_value, state.best_epoch, state.epochs_without_improvement) == (0.7, 5, 0)
    assert note(RunState(), 2.0, 1.0, 1.5, higher_is_better=False) == [True, True, False]


def test_patience_and_plateau_go_by_the_best_of_their_phase_and_the_best_model_by_that_of_the_run():
    state = RunState()
    assert note(state, 0.8, 0.9, 0.85) == [True, True, False]
    state.end_phase()
    assert note(state, 0.5, 0.6, 0.7, 0.8) == [False] * 4
    assert (state.epochs_without_improvement, state.plateau_waited, state.plateau_factor) == (0, 0, 1.0)
    assert (state.best_value, state.best_epoch) == (0.9, 2)
    assert note(state, 0.8, 0.79, 0.95) == [False, False, True]
    assert state.plateau_factor == pytest.approx(0.1)
    assert (state.best_epoch, state.epochs_without_improvement) == (10, 0)


@pytest.mark.parametrize(("sign", "higher_is_better"), [(1, True), (-1, False)])
def test_min_delta_is_for_patience_alone(sign, higher_is_better):
    state, settings = RunState(), {"min_delta": 0.5, "higher_is_better": higher_is_better}
    assert note(state, sign * 0.222, sign * 0.25, sign * 0.194, **settings) == [True, True, False]
    assert (state.best_value, state.best_epoch) == (sign * 0.25, 2)
    assert (state.epochs_without_improvement, state.plateau_waited) == (2, 1)
    # Small gains add up: patience counts from the last value that was far enough above those before.
    assert note(state, sign * 0.6, sign * 0.73, **settings) == [True, True]
    assert (state.epochs_without_improvement, state.plateau_waited, state.plateau_factor) == (0, 0, 1.0)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_of_equal_values_the_lower_validation_loss_is_the_best(higher_is_better):
    state = RunState()
    verdicts = note(state, 1.0, 1.0, 1.0, 1.0, losses=[0.5, 0.4, 0.45, 0.4], higher_is_better=higher_is_better)
    assert verdicts == [True, True, False, False]
    assert (state.best_loss, state.best_epoch, state.epochs_without_improvement) == (0.4, 2, 3)


def test_a_state_from_before_phases_had_their_own_best_goes_on_as_it_would_have(tmp_path):
    state = RunState(epoch=4, epoch_in_phase=4)
    note(state, 0.6)
    content = read_run(save_run(tmp_path, state, small_tensors(), identity(), keep=1))
    for name in ("best_loss", "phase_best", "phase_reference"):
        del content["state"][name]
    restored = restore_run(content, small_tensors())
    assert note(restored, 0.6, 0.5, 0.7, losses=[0.1, 1.0, 1.0]) == [False, False, True]
    assert restored.plateau_factor == pytest.approx(0.1)
