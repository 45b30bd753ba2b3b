"""The four trainers on a small model of random weights: tensors in, a better model out. Takes some seconds.

Completions are given once, with their prompts; pairs are two lists of indices, so a completion may be in several pairs.
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dipole import ConstitutionalDPOTrainer, DPOTrainer, DPOTrainerWithLoRA, ProbabilisticDPOTrainer

torch.manual_seed(0)
base = LlamaForCausalLM(
    LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
)

# Four completions of five tokens after a prompt of six, as a tokenizer would give them.
prompt = torch.randint(128, (6,))
completions = torch.randint(128, (4, 5))
x = {
    "input_ids": torch.cat([prompt.expand(4, 6), completions], dim=1),
    "attention_mask": torch.ones(4, 11, dtype=torch.int64),
    "completion_mask": (torch.arange(11) >= 6).long().expand(4, 11),
}
yw_idxs = torch.tensor([0, 0, 1])  # 0 is better than 1 and than 2, 1 is better than 3
yl_idxs = torch.tensor([1, 2, 3])


def report(name: str, losses: list[float], metrics: dict[str, float]) -> None:
    print(f"{name}: loss {losses[0]:.3f} → {losses[-1]:.3f}, margin {metrics['rewards/margins']:.2f}")


# The loss alone: ln 2 when policy and reference are the same.
dpo = DPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3)
pi_logps = torch.tensor([-12.0, -11.0, -10.0, -13.0], requires_grad=True)
loss, rewards = dpo.compute_loss(pi_logps, pi_logps.detach(), yw_idxs, yl_idxs)
print(f"At the reference: loss {loss.item():.4f}, rewards {rewards.tolist()}")

losses = [dpo.train_step((x, yw_idxs, yl_idxs)) for _ in range(20)]
report("DPO", losses, dpo.metrics)

lora = DPOTrainerWithLoRA(copy.deepcopy(base), beta=0.1, lr=1e-2, lora_rank=8)
losses = [lora.train_step((x, yw_idxs, yl_idxs)) for _ in range(20)]
report("LoRA", losses, lora.metrics)

# The second pair is undecided, the third a little: margins follow the probabilities.
soft = ProbabilisticDPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3)
losses = [soft.train_step((x, yw_idxs, yl_idxs, [1.0, 0.5, 0.7])) for _ in range(20)]
report("Probabilities", losses, soft.metrics)


def stay_near(model, pi_logps, ref_logps, yw_idxs, yl_idxs):  # type: ignore[no-untyped-def]
    """A constraint is any differentiable function of these: here, the mean square of the log-ratio."""
    return 0.01 * (pi_logps - ref_logps).square().mean()


constitutional = ConstitutionalDPOTrainer(copy.deepcopy(base), beta=0.1, lr=1e-3, constraints=[stay_near])
losses = [constitutional.train_step((x, yw_idxs, yl_idxs)) for _ in range(20)]
report("Constraints", losses, constitutional.metrics)
print(f"stay_near ended at {constitutional.metrics['constraints/stay_near']:.3f}")
