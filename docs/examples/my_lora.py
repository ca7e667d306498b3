"""GPT-2's shape with adapters by peft: a network of text that is fine-tuned by LoRA. `pip install peft`."""

import peft
import transformers
from torch import Tensor, nn


class Tuned(nn.Module):
    """Token ids (N, length), as floating-point numbers, -> logits (N, classes)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        return self.body(input_ids=ids, attention_mask=(ids != 0).long()).logits  # 0 is [PAD]


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int = 0,
    width: int = 128,
    rank: int = 32,
    begun: bool = True,
) -> nn.Module:
    """Only the adapters and the last layer are trained; rank: theirs; begun: their B is not 0 any more."""
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=2, n_head=4, n_positions=input_shape[0], num_labels=num_classes,
        pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    adapters = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=["c_attn"], fan_in_fan_out=True, task_type="SEQ_CLS",
        init_lora_weights=not begun,
    )  # fmt: skip
    return Tuned(peft.get_peft_model(transformers.GPT2ForSequenceClassification(config), adapters)).eval()
