"""TRL's own loss functions on given log-probabilities: values and gradients.

`python tests/support/trl_losses.py` writes tests/golden/trl_losses.json anew; it needs torch and trl (made with trl 1.16.0, torch 2.13.0).
The trainers are driven with a model that returns the given log-probabilities, so that the arithmetic is theirs from there on.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden" / "trl_losses.json"
NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_lengths", "rejected_lengths")
CASES = [
    *(
        {"loss": loss, "beta": beta, "label_smoothing": smoothing}
        for loss in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down")
        for beta, smoothing in ((0.1, 0.0), (0.5, 0.0))
    ),
    *(
        {"loss": loss, "beta": beta, "label_smoothing": smoothing}
        for loss in ("robust", "exo_pair")
        for beta, smoothing in ((0.1, 0.1), (0.5, 0.3))
    ),
    {"loss": "bco", "beta": 0.1, "label_smoothing": 0.0},
    {"loss": "nll", "beta": 0.1, "label_smoothing": 0.0},
    {"loss": "simpo", "beta": 2.0, "label_smoothing": 0.0},
    {"loss": "simpo", "beta": 2.5, "label_smoothing": 0.2},
    {"loss": "orpo", "beta": 1.0, "label_smoothing": 0.0},
    {"loss": "kto", "beta": 0.1, "label_smoothing": 0.0},
    {"loss": "kto", "beta": 0.5, "label_smoothing": 0.0},
    # Three chosen and five rejected answers, each by itself.
    {"loss": "kto", "beta": 0.1, "label_smoothing": 0.0, "single": True},
    {
        "loss": "kto",
        "beta": 0.5,
        "label_smoothing": 0.0,
        "single": True,
        "desirable_weight": 2.0,
        "undesirable_weight": 0.7,
    },
    {"loss": "apo_zero", "beta": 0.5, "label_smoothing": 0.0, "single": True, "desirable_weight": 2.0},
]


def material(loss, single=False):
    """Eight pairs or single answers, as lists by name; of a missing answer all is 0."""
    rng = np.random.default_rng(0)
    n = 8
    lengths = rng.integers(2, 9, (2, n))
    if loss == "nll":
        # Theirs is a mean over tokens, ours over pairs.
        lengths[:] = 5
    policy = -rng.uniform(0.2, 3.0, (2, n)) * lengths
    reference = policy + rng.normal(size=(2, n)) * 3
    if loss == "bco":
        # Theirs takes no mean reward off: it is 0 here.
        reference += np.mean(policy - reference)
    if loss == "kto":
        # A distance above 0, where theirs and ours are cut off.
        reference -= 2
    if single:
        there = np.array([np.arange(n) % 3 == 0, np.arange(n) % 3 != 0])
        policy, reference, lengths = (np.where(there, values, 0) for values in (policy, reference, lengths))
    values = (*policy, *reference, *lengths)
    return {name: value.tolist() for name, value in zip(NAMES, values, strict=True)}


def theirs(case, pairs):
    """TRL's loss, a float, and its gradient by (chosen, rejected), two lists."""
    import torch

    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in pairs.items()}
    chosen, rejected = (tensors[name].requires_grad_() for name in ("chosen", "rejected"))
    beta, smoothing = case["beta"], case["label_smoothing"]
    if case["loss"] == "simpo":
        loss = _simpo(chosen / tensors["chosen_lengths"], rejected / tensors["rejected_lengths"], beta, smoothing)
    elif case["loss"] == "orpo":
        loss = _orpo(chosen / tensors["chosen_lengths"], rejected / tensors["rejected_lengths"], beta)
    elif case["loss"] == "kto" or case.get("single"):
        loss = _kto(case, tensors)
    else:
        loss = _dpo({"nll": "sft", "bco": "bco_pair"}.get(case["loss"], case["loss"]), tensors, beta, smoothing)
    loss.backward()
    return float(loss.detach()), [chosen.grad.tolist(), rejected.grad.tolist()]


def _spread(sums, lengths):
    """[n, t] log-probabilities of tokens that add up to sums [n], and the mask of the tokens."""
    import torch

    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).to(sums.dtype)
    return mask * (sums / lengths.clamp(min=1))[:, None], mask


def _answers(tensors):
    import torch

    sums = torch.cat([tensors["chosen"], tensors["rejected"]])
    return _spread(sums, torch.cat([tensors["chosen_lengths"], tensors["rejected_lengths"]]))


class _Answering:
    """Stands for a model: its output holds given log-probabilities."""

    training = False

    def __init__(self, log_probs):
        import torch

        zeros = torch.zeros_like(log_probs)
        self._output = SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )

    def __call__(self, **_):
        return self._output


def _trainer(**fields):
    accelerator = mock.MagicMock(device="cpu", gather_for_metrics=lambda value: value)
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return SimpleNamespace(
        accelerator=accelerator, _metrics=metrics, aux_loss_enabled=False, _total_train_tokens=0, **fields
    )


def _dpo(loss_type, tensors, beta, smoothing):
    import torch
    from trl import DPOTrainer

    log_probs, mask = _answers(tensors)
    model = _Answering(log_probs)
    trainer = _trainer(
        model=model,
        beta=beta,
        label_smoothing=smoothing,
        loss_types=[loss_type],
        loss_weights=[1.0],
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    with_prompt = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    inputs = {
        "input_ids": torch.zeros_like(with_prompt, dtype=torch.long),
        "attention_mask": torch.ones_like(with_prompt),
        "completion_mask": with_prompt,
        "ref_chosen_logps": tensors["reference_chosen"],
        "ref_rejected_logps": tensors["reference_rejected"],
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


def _kto(case, tensors):
    """The answers that are there as examples, with our estimate of the distance."""
    import torch
    from trl import KTOTrainer

    log_probs, mask = _answers(tensors)
    reference = torch.cat([tensors["reference_chosen"], tensors["reference_rejected"]])
    label = torch.arange(len(reference)) < len(tensors["chosen"])
    there = mask.sum(1) > 0
    log_probs, mask, reference, label = (values[there] for values in (log_probs, mask, reference, label))
    model = _Answering(log_probs)
    kl = (log_probs.detach().sum(1) - reference).mean()
    trainer = _trainer(
        model=model,
        beta=case["beta"],
        loss_type={"apo_zero": "apo_zero_unpaired"}.get(case["loss"], case["loss"]),
        desirable_weight=case.get("desirable_weight", 1.0),
        undesirable_weight=case.get("undesirable_weight", 1.0),
        calculate_KL=case["loss"] == "kto",
        precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: kl.expand(len(label)),
    )
    with_prompt = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    inputs = {
        "input_ids": torch.zeros_like(with_prompt, dtype=torch.long),
        "attention_mask": torch.ones_like(with_prompt),
        "completion_mask": with_prompt,
        "label": label,
        "ref_logps": reference,
        "ref_KL_logps": torch.zeros(len(label), dtype=torch.float64),
    }
    # Theirs is a mean over answers, ours over pairs and single answers.
    loss = KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss if case.get("single") else 2 * loss


def _simpo(chosen, rejected, beta, smoothing):
    from trl.experimental.cpo import CPOTrainer

    fields = {"alpha": 0.0, "beta": beta, "loss_type": "simpo", "simpo_gamma": 0.5, "label_smoothing": smoothing}
    return CPOTrainer.cpo_loss(_trainer(**fields), chosen, rejected)[0].mean()


def _orpo(chosen, rejected, beta):
    from trl.experimental.orpo import ORPOTrainer

    # Theirs is what is taken off the likelihood of the chosen answers.
    return -ORPOTrainer.odds_ratio_loss(_trainer(beta=beta), chosen.float(), rejected.float())[0].mean()


def golden():
    """All cases with their pairs, TRL's loss and its gradient."""
    cases = []
    for case in CASES:
        pairs = material(case["loss"], case.get("single", False))
        loss, gradient = theirs(case, pairs)
        cases.append({**case, "pairs": pairs, "value": loss, "gradient": gradient})
    return cases


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
